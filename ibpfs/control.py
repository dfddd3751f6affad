"""The owner's ear: commands as JSON lines over VOLUME/run/control.sock, one command per connection.

Request: {"command": NAME, ...}. Replies: any number of {"progress": [done, total, text]} or, as a sign of life,
{"progress": null}, then {"ok": true, "result": ...} or {"ok": false, "error": "one line", "exit": N}. Knows no
command; they are handed in.
"""

import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ibpfs.config import VolumePaths
from ibpfs.errors import IbpfsError, UsageError, VolumeError

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Command = Callable[[Mapping[str, Any], Progress], Awaitable[Any]]

#: An exNode that is imported, with all its capabilities. Who asks is this user, or root.
_LONGEST_REQUEST = 128 * 1024 * 1024
_PROGRESS_EVERY = 0.1
_ALIVE_EVERY = 2.0
#: Seconds without a sign of life after which an owner is taken for stuck.
PATIENCE = 20.0
_CREDENTIALS = struct.Struct("=iII")


class NotInUse(VolumeError):
    """No process owns the volume, or none that listens."""


class Refused(IbpfsError):
    """The owner could not do what it was asked; `exit` is the exit code it proposes."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit = code


# --- the owner's side


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
        with _short(path) as name:
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
    while not line.endswith(b"\n") and len(line) < _LONGEST_REQUEST:
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


# --- the asker's side


def call(paths: VolumePaths, command: str, on_progress: Progress | None = None, **arguments: Any) -> Any:
    """Ask the volume's owner and return its result.

    Raises NotInUse when there is none, Refused when it cannot, VolumeError when it is stuck.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    if len(request) > _LONGEST_REQUEST:
        raise UsageError(f"{paths.root}: too much for one command ({len(request)} bytes)")
    with _connected(paths) as door, door.makefile("rwb") as lines:
        lines.write(request)
        lines.flush()
        for line in lines:
            message = json.loads(line)
            if "progress" not in message:
                return _result(message)
            if on_progress is not None and message["progress"] is not None:
                on_progress(*message["progress"])
    raise VolumeError(f"{paths.root}: the process that serves the volume ended before it answered")


def _result(message: Mapping[str, Any]) -> Any:
    if message.get("ok"):
        return message.get("result")
    raise Refused(str(message.get("error")), int(message.get("exit", 1)))


@contextmanager
def _connected(paths: VolumePaths) -> Iterator[socket.socket]:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with door:
        door.settimeout(PATIENCE)
        try:
            with _short(paths.control) as name:
                door.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotInUse(f"{paths.root}: is not in use") from None
        except OSError as error:
            raise VolumeError(f"{paths.control}: {error.strerror}") from None
        try:
            yield door
        except TimeoutError:
            raise VolumeError(
                f"{paths.root}: the process that serves the volume has not answered for {PATIENCE:.0f} s"
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            raise VolumeError(f"{paths.root}: the process that serves the volume ended, or refuses this user") from None


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes of a Unix address, however deep the volume lies."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
