"""What the Thunderbird add-on asks for: files that come in pieces, and go as links.

Requests: {"op": "hello"}, {"op": "begin", "upload": N, "name": ..., "size": ...}, {"op": "data", "upload": N, "data":
base64}, {"op": "end", "upload": N}, {"op": "abort", "upload": N}, {"op": "revoke", "id": ...}. Each is answered once;
what went wrong with {"op": "error", "error": "one line"}, and that upload is over.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

from ibpfs import __version__
from ibpfs.errors import IbpfsError, UsageError
from ibpfs.mail.file_names import clean_name
from ibpfs.mail.handling import Sharer
from ibpfs.mail.spooled import mapped, open_spool, pieces

PROTOCOL: Final = 1
_MOST_UPLOADS: Final = 16
_LARGEST: Final = 1 << 40
_LONGEST_ERROR: Final = 500


@dataclass
class _Upload:
    name: str
    size: int
    file: IO[bytes] = field(default_factory=open_spool)
    received: int = 0

    def add(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self.size:
            raise UsageError(f"{self.name}: more bytes came than were announced")
        self.file.write(data)


class FileLink:
    """One conversation. `describe` says where files go; it raises when they go nowhere."""

    def __init__(self, sharer: Sharer, describe: Callable[[], str]) -> None:
        self._sharer = sharer
        self._describe = describe
        self._uploads: dict[int, _Upload] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to any request; never raises."""
        number = request.get("upload")
        about = {"upload": number} if isinstance(number, int) else {}
        try:
            return {**self._answer(str(request.get("op")), request), **about}
        except (IbpfsError, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(number, int):
                self._forget(number)
            return {"op": "error", "error": _one_line(error), **about}

    def close(self) -> None:
        for number in list(self._uploads):
            self._forget(number)

    def _answer(self, op: str, request: Mapping[str, Any]) -> dict[str, Any]:
        match op:
            case "hello":
                return {"op": "hello", "protocol": PROTOCOL, "version": __version__, "volume": self._describe()}
            case "begin":
                return self._begin(_number(request, "upload"), str(request["name"]), _number(request, "size"))
            case "data":
                upload = self._upload(request)
                upload.add(_decoded(request))
                return {"op": "ready", "received": upload.received}
            case "end":
                return self._end(_number(request, "upload"), self._upload(request))
            case "abort":
                self._forget(_number(request, "upload"))
                return {"op": "aborted"}
            case "revoke":
                self._sharer.revoke([str(request["id"])])
                return {"op": "revoked", "id": str(request["id"])}
        raise UsageError("a request that is not known; is the add-on newer than ibpfs?")

    def _begin(self, number: int, name: str, size: int) -> dict[str, Any]:
        if len(self._uploads) >= _MOST_UPLOADS:
            raise UsageError("too many uploads at a time")
        if number in self._uploads or size > _LARGEST:
            raise UsageError("an upload that cannot be")
        self._uploads[number] = _Upload(clean_name(name, "attachment"), size)
        return {"op": "ready", "received": 0}

    def _end(self, number: int, upload: _Upload) -> dict[str, Any]:
        if upload.received != upload.size:
            raise UsageError(f"{upload.name}: {upload.received} bytes of {upload.size} came")
        with mapped(upload.file) as data:
            found = self._sharer.share(upload.name, upload.size, pieces(data))
        self._forget(number)
        return {"op": "shared", "id": found.id, "url": found.link, "name": found.name, "size": found.size,
                "expires": found.expires}  # fmt: skip

    def _upload(self, request: Mapping[str, Any]) -> _Upload:
        found = self._uploads.get(_number(request, "upload"))
        if found is None:
            raise UsageError("an upload that was not begun")
        return found

    def _forget(self, number: int) -> None:
        found = self._uploads.pop(number, None)
        if found is not None:
            found.file.close()


def _number(request: Mapping[str, Any], name: str) -> int:
    value = request[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{name} is no number")
    return value


def _decoded(request: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(str(request["data"]).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise UsageError("a piece that is not base64") from None


def _one_line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}" if not isinstance(error, IbpfsError | OSError) else str(error)
    return " ".join(text.split())[:_LONGEST_ERROR]
