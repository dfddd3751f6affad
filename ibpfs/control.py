"""Asking the owner of a volume: commands as JSON lines over VOLUME/run/control.sock, one command per connection.

Request: {"command": NAME, ...}. Replies: any number of {"progress": [done, total, text]} or, as a sign of life,
{"progress": null}, then {"ok": true, "result": ...} or {"ok": false, "error": "one line", "exit": N}. Knows no
command. Who listens is next door, in `ear`: what it needs would take an asker as long as the rest of his start. Nor are
pathlib, typing and contextlib needed here (see `mountinfo`).
"""

import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

from ibpfs.errors import IbpfsError, UsageError, VolumeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ibpfs.paths import VolumePaths

Progress = Callable[[int, int, str], None]
Command = Callable[[Mapping[str, object], Progress], Awaitable[object]]

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


def call(
    paths: "VolumePaths", command: str, on_progress: Progress | None = None, **arguments: object
) -> "Any":
    """Ask the volume's owner and return its result.

    Raises NotInUse when there is none, Refused when it cannot, VolumeError when it is stuck.
    """
    return ask(str(paths.root), command, on_progress, **arguments)


def ask(root: str, command: str, on_progress: Progress | None = None, **arguments: object) -> "Any":
    """As `call`, of the volume at `root`."""
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    if len(request) > LONGEST_REQUEST:
        raise UsageError(f"{root}: too much for one command ({len(request)} bytes)")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(PATIENCE)
        _connect(door, root)
        try:
            return _converse(door, root, request, on_progress)
        except TimeoutError:
            raise VolumeError(
                f"{root}: the process that serves the volume has not answered for {PATIENCE:.0f} s"
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            raise VolumeError(f"{root}: the process that serves the volume ended, or refuses this user") from None


def _connect(door: socket.socket, root: str) -> None:
    control = os.path.join(root, "run", "control.sock")  # noqa: PTH118 (VolumePaths.control, without pathlib)
    try:
        with ShortAddress(control) as name:
            door.connect(name)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotInUse(f"{root}: is not in use") from None
    except OSError as error:
        raise VolumeError(f"{control}: {error.strerror}") from None


def _converse(door: socket.socket, root: str, request: bytes, on_progress: Progress | None) -> "Any":
    with door.makefile("rwb") as lines:
        lines.write(request)
        lines.flush()
        for line in lines:
            message = json.loads(line)
            if "progress" not in message:
                return _result(message)
            if on_progress is not None and message["progress"] is not None:
                on_progress(*message["progress"])
    raise VolumeError(f"{root}: the process that serves the volume ended before it answered")


def _result(message: "Mapping[str, Any]") -> "Any":
    if message.get("ok"):
        return message.get("result")
    raise Refused(str(message.get("error")), int(message.get("exit", 1)))


class ShortAddress:
    """A name for a socket that fits into the 108 bytes of a Unix address, however deep the volume lies."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)

    def __enter__(self) -> str:
        self._descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{self._name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
