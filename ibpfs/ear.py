"""The owner's ear: answers what `control` asks. Knows no command; they are handed in."""

import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ibpfs.control import LONGEST_REQUEST, Command, Progress, ShortAddress
from ibpfs.errors import IbpfsError, UsageError

_log = logging.getLogger(__name__)

_PROGRESS_EVERY = 0.1
_ALIVE_EVERY = 2.0
_CREDENTIALS = struct.Struct("=iII")


@asynccontextmanager
async def listening(path: Path, commands: Mapping[str, Command]) -> AsyncIterator[None]:
    """Answer commands while in the block. The caller owns the volume, so a socket in the way is a dead one's."""
    with _door(path) as door:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(door))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, partial(_converse, commands), [listener]))
            yield
            nursery.cancel_scope.cancel()


@contextmanager
def _door(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with ShortAddress(str(path)) as name:
            door.bind(name)
        path.chmod(0o600)
        door.listen(16)
        yield door
    finally:
        door.close()
        path.unlink(missing_ok=True)


async def _converse(commands: Mapping[str, Command], stream: trio.SocketStream) -> None:
    async with stream:
        try:
            if _peer(stream) not in (0, os.geteuid()):
                return
            request = await _receive(stream)
            if request is not None:
                await _answer(commands, stream, request)
        except* trio.BrokenResourceError:  # in a group, when it was noticed while the command ran
            _log.debug("who asked went away")


def _peer(stream: trio.SocketStream) -> int:
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


async def _receive(stream: trio.SocketStream) -> dict[str, Any] | None:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < LONGEST_REQUEST:
        chunk = await stream.receive_some(65536)
        if not chunk:
            break
        line += chunk
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


async def _answer(commands: Mapping[str, Command], stream: trio.SocketStream, request: dict[str, Any]) -> None:
    latest: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, text: str = "") -> None:
        latest[:] = [(done, total, text)]

    reply: dict[str, Any] | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_tell_progress, stream, latest)
        nursery.start_soon(_watch_end, stream, nursery.cancel_scope)
        reply = await _run(commands, request, progress)
        nursery.cancel_scope.cancel()
    if reply is not None:
        await _send(stream, reply)


async def _run(commands: Mapping[str, Command], request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    name = str(request.get("command"))
    try:
        if name not in commands:
            raise UsageError(f"the process that serves the volume knows no command {name!r}; is it an older version?")
        return {"ok": True, "result": await commands[name](request, progress)}
    except UsageError as error:
        return {"ok": False, "error": str(error), "exit": 2}
    except IbpfsError as error:
        return {"ok": False, "error": str(error), "exit": 1}
    except Exception as error:
        _log.exception("command %s failed", name)
        return {"ok": False, "error": f"internal error: {type(error).__name__} (see the volume's log)", "exit": 70}


async def _tell_progress(stream: trio.SocketStream, latest: list[tuple[int, int, str]]) -> None:
    said = trio.current_time()
    while True:
        await trio.sleep(_PROGRESS_EVERY)
        if latest or trio.current_time() > said + _ALIVE_EVERY:
            await _send(stream, {"progress": latest.pop() if latest else None})
            said = trio.current_time()


async def _watch_end(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Who asks sends nothing more; when it hangs up, the command is given up."""
    while await stream.receive_some(4096):
        pass
    scope.cancel()


async def _send(stream: trio.SocketStream, message: Mapping[str, Any]) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(20.0):  # half a line would be worse than a late one
        await stream.send_all(json.dumps(message).encode() + b"\n")
