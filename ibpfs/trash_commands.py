"""What the owner of a volume does for `ibpfs trash`."""

import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from ibpfs.cache.trash_keeper import TrashKeeper
from ibpfs.control import Command, Progress
from ibpfs.errors import IbpfsError, NameExists, NotFound, UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.dentries import Place
from ibpfs.exnode_store.inodes import InodeTable
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.restoring import Listed, Restoring

_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


class TrashCommands:
    """The commands of one open volume; a mount fills in `forget_kernel`, which is told the names that came back."""

    def __init__(self, db: Database, names: Namespace, keeper: TrashKeeper) -> None:
        self._db = db
        self._names = names
        self._trash = names.trash
        self._keeper = keeper
        self._restoring = Restoring(db, names, InodeTable(db, time.time_ns))
        self.forget_kernel: Callable[[list[Place]], Awaitable[None]] | None = None

    def commands(self) -> dict[str, Command]:
        return {
            "trash-list": self._list, "trash-restore": self._restore, "trash-empty": self._empty,
            "trash-keep": self._keep,
        }  # fmt: skip

    async def _list(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        after = request.get("after")
        found, last = self._restoring.page(after if isinstance(after, int) else 0, every=request.get("every") is True)
        return {"names": [self._describe(one) for one in found], "next": last}

    def _describe(self, one: Listed) -> dict[str, Any]:
        return {
            "number": one.id,
            "path": os.fsdecode(one.path),
            "type": _TYPES.get(stat.S_IFMT(one.mode), "other"),
            "size": one.size,
            "deleted_at": one.deleted_at,
            "kept_until": one.deleted_at + self._trash.keep,
        }

    async def _restore(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        path, number, to = request.get("path"), request.get("number"), request.get("to")
        name = f"number {number}" if isinstance(number, int) else str(path)
        try:
            steps = self._steps(path, number, to)
            count = 0
            for places in steps:
                count += len(places)
                progress(count, count, "restoring")
                await self._forget(places)
                await trio.lowlevel.checkpoint()
        except (NotFound, NameExists) as error:
            raise UsageError(f"{name}: {error}") from error
        await self._db.sync()
        return {"restored": count}

    def _steps(self, path: object, number: object, to: object) -> Any:
        target = None if to is None else self._place(os.fsencode(str(to)))
        if isinstance(number, int):
            return self._restoring.restore(self._restoring.numbered(number), target)
        wanted = os.fsencode(str(path))
        try:
            return self._restoring.restore(self._restoring.find(wanted), target)
        except NotFound:
            below = self._left_below(wanted) if target is None else None
            if below is None:
                raise
            return self._restoring.restore_below(below)

    def _left_below(self, path: bytes) -> int | None:
        """The directory of which a restore was cut short, or of which some names were deleted."""
        try:
            directory = self._restoring.directory_at(path)
        except IbpfsError:
            return None
        return directory if self._trash.has_below(directory) else None

    def _place(self, path: bytes) -> Place:
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise UsageError("--to is the new name of what comes back")
        return self._restoring.directory_at(above), name

    async def _forget(self, places: list[Place]) -> None:
        if self.forget_kernel is not None:
            await self.forget_kernel(places)

    async def _empty(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        older = request.get("older_than")
        until = time.time() - older if isinstance(older, int | float) else None
        return {"names": await self._keeper.empty(until=until)}

    async def _keep(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        seconds, lived = request.get("seconds"), request.get("lived")
        if isinstance(seconds, int | float) or isinstance(lived, int | float):
            keep = self._trash.keep if seconds is None else float(seconds)
            self._trash.set_keep(keep, None if lived is None else float(lived))
            await self._db.sync()
        return {"keep_seconds": self._trash.keep, "lived_seconds": self._trash.lived}
