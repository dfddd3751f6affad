"""Asking the owner of a volume: commands as JSON lines over VOLUME/run/control.sock, one command per connection.

Request: {"command": NAME, ...}. Replies: any number of {"progress": [done, total, text]} or, as a sign of life,
{"progress": null}, then {"ok": true, "result": ...} or {"ok": false, "error": "one line", "exit": N}. Knows no
command. Who listens is next door, in `ear`: what it needs would take an asker as long as the rest of his start.
"""

import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ibpfs.errors import IbpfsError, UsageError, VolumeError
from ibpfs.paths import VolumePaths

Progress = Callable[[int, int, str], None]
Command = Callable[[Mapping[str, Any], Progress], Awaitable[Any]]

#: An exNode that is imported, with all its capabilities. Who asks is this user, or root.
LONGEST_REQUEST = 128 * 1024 * 1024
#: Seconds without a sign of life after which an owner is taken for stuck.
PATIENCE = 20.0


class NotInUse(VolumeError):
    """No process owns the volume, or none that listens."""


class Refused(IbpfsError):
    """The owner could not do what it was asked; `exit` is the exit code it proposes."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit = code


def call(paths: VolumePaths, command: str, on_progress: Progress | None = None, **arguments: Any) -> Any:
    """Ask the volume's owner and return its result.

    Raises NotInUse when there is none, Refused when it cannot, VolumeError when it is stuck.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    if len(request) > LONGEST_REQUEST:
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
            with short_address(paths.control) as name:
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
def short_address(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes of a Unix address, however deep the volume lies."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
