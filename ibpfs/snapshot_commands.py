"""What the owner of a volume does for `ibpfs snapshot`."""

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ibpfs.control import Command, Progress
from ibpfs.errors import UsageError
from ibpfs.exnode_store.snapshots import Snapshots

#: What a snapshot is called that is given no name: the time (UTC) at which it was asked for.
NAME_FORMAT = "%Y-%m-%d-%H%M%S"


class SnapshotCommands:
    """The commands of one open volume. `flush` returns when what was written is on the depots."""

    def __init__(self, snapshots: Snapshots, flush: Callable[[Progress], Awaitable[None]]) -> None:
        self._snapshots = snapshots
        self._flush = flush

    def commands(self) -> dict[str, Command]:
        return {"snapshot-create": self._create, "snapshot-list": self._list, "snapshot-delete": self._delete}

    async def _create(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        name = request.get("name")
        if name is None:
            name = time.strftime(NAME_FORMAT, time.gmtime())
        _check(name)
        await self._flush(progress)
        progress(0, 1, "copying names")
        return await self._snapshots.create(name)

    async def _list(self, _: Mapping[str, Any], __: Progress) -> list[dict[str, Any]]:
        own = await self._snapshots.own_bytes()
        return [self._snapshots.describe(pin) | {"own_bytes": own[pin.id]} for pin in self._snapshots.all()]

    async def _delete(self, request: Mapping[str, Any], _: Progress) -> None:
        name = request.get("name")
        _check(name)
        await self._snapshots.delete(str(name))


def _check(name: object) -> None:
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UsageError("a snapshot's name is a name as a file may have it")
    if len(os.fsencode(name)) > 255:
        raise UsageError("a snapshot's name is at most 255 bytes long")
