"""Which file a request was about, and which depots it waited for: what the log says of a request that failed."""

from collections.abc import Sequence
from typing import Any

from ibpfs.exnode_store.whereabouts import Whereabouts
from ibpfs.fuse_handles import Handles

#: Requests whose first argument is a handle, not an inode.
_BY_HANDLE = frozenset(
    ("read", "write", "flush", "fsync", "release", "readdir", "releasedir", "fsyncdir", "_read_frozen")
)


class Blame:
    """Made once per mount. Never raises: it is asked when something has gone wrong already."""

    def __init__(self, whereabouts: Whereabouts, handles: Sequence[Handles[Any]]) -> None:
        self._whereabouts = whereabouts
        self._handles = handles

    def __call__(self, request: str, arguments: Sequence[Any], late: bool) -> tuple[str, str]:
        """The request and its file; and, when it was late, what it may have waited for."""
        waited = self._waiting_for(request, arguments) if late else ""
        return f"{request.strip('_').removesuffix('_frozen')} of {self._file(request, arguments)}", waited

    def _file(self, request: str, arguments: Sequence[Any]) -> str:
        try:
            inode = self._inode(request, arguments)
            path = f"inode {inode} of a snapshot" if request == "_read_frozen" else self._whereabouts.path(inode)
            name = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], bytes) else b""
            return f"{path.rstrip('/')}/{name.decode('utf-8', 'backslashreplace')}" if name else path
        except Exception as error:
            return f"an unknown file ({type(error).__name__})"

    def _waiting_for(self, request: str, arguments: Sequence[Any]) -> str:
        try:
            if request == "read":
                _, start, size = arguments
                return self._whereabouts.of_bytes(self._inode(request, arguments), start, start + size)
            return self._whereabouts.of_depots()
        except Exception as error:
            return f"unknown ({type(error).__name__})"

    def _inode(self, request: str, arguments: Sequence[Any]) -> int:
        number = int(arguments[0])
        if request not in _BY_HANDLE:
            return number
        for handles in self._handles:
            if number in handles:
                return int(handles[number].ino)
        raise KeyError(number)
