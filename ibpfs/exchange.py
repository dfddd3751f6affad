"""What the owner of a volume does for `ibpfs import` and `ibpfs export`: foreign allocations as parts of a file, parts
of a file as windows for others.

Knows ledger and depots; neither documents nor terminal.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from ibpfs.cache.files import FileCache
from ibpfs.control import Command, Progress
from ibpfs.depot.address import Address, BadAddress
from ibpfs.depot.capability import BadCapability, CapabilitySet, Key
from ibpfs.depot.wire import DepotError, DepotUnreachable, LeaseTooLong
from ibpfs.errors import UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.extents import Piece
from ibpfs.exnode_store.imports import ForeignReplica, Imports, Part
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NO_KEY, Replica, SliceRef, pack_key, unpack_key
from ibpfs.exnode_store.recoding import Recoding
from ibpfs.exnode_store.sealing import ForeignSlice

_log = logging.getLogger(__name__)

#: Windows that are asked for at a time.
_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class _Window:
    """Stored bytes of a replica that an exNode is to name."""

    replica: Replica
    offset: int
    length: int


class Exchange:
    """The commands of one open volume; a mount fills in `forget_kernel`."""

    def __init__(
        self, db: Database, ledger: Ledger, depots: DepotSet, files: FileCache, imports: Imports, recoding: Recoding
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._files = files
        self._imports = imports
        self._recoding = recoding
        self.forget_kernel: Callable[[int], Awaitable[None]] | None = None

    def commands(self) -> dict[str, Command]:
        return {"import": self._import, "export": self._export}

    # Import

    async def _import(self, request: Mapping[str, Any], progress: Progress) -> None:
        """ino: of a new, empty file; size; own; adopted; parts: {start, stop, replicas, sealed}, see `_part`."""
        try:
            ino, size, own = int(request["ino"]), int(request["size"]), bool(request["own"])
            parts = [self._part(one, own) for one in request["parts"]]
        except (KeyError, TypeError, ValueError, BadCapability) as error:
            raise UsageError(f"not a request to import a file: {type(error).__name__}") from None
        for done in self._imports.adopt(ino, parts, size):
            progress(done, max(len(parts), done), "")
            await trio.lowlevel.checkpoint()
        if request.get("adopted"):
            self._imports.note_adopted(ino)
        await self._db.sync()
        if self.forget_kernel is not None:
            await self.forget_kernel(ino)

    def _part(self, one: Mapping[str, Any], own: bool) -> Part:
        replicas = tuple(self._replica(row, own) for row in one["replicas"])
        sealed = one.get("sealed")
        found = None if sealed is None else ForeignSlice.from_row(sealed)
        return Part(int(one["start"]), int(one["stop"]), replicas, found)

    def _replica(self, row: Mapping[str, Any], own: bool) -> ForeignReplica:
        """address, base, read, and, where known, write, manage ('KEY/TYPEKEY'), lease_end, pin (hex)."""
        pin = bytes.fromhex(row.get("pin") or "")
        depot = self._depots.foreign(Address.parse(row["address"]), pin or None)
        write, manage = (unpack_key(row[kind]) if row.get(kind) else NO_KEY for kind in ("write", "manage"))
        end = row.get("lease_end")
        return ForeignReplica(
            depot.id, int(row["base"]), unpack_key(row["read"]), write, manage, None if end is None else float(end),
            own and manage != NO_KEY,
        )  # fmt: skip

    # Export

    async def _export(self, request: Mapping[str, Any], progress: Progress) -> list[dict[str, Any]]:
        """The parts of file `ino` as allocations to name; without any, where no depot gives a window on the bytes.

        `sealed`: sealed slices, too; `keys`: with their keys; `seconds`: how long a window stays open.
        """
        ino, seconds = int(request["ino"]), int(request["seconds"])
        await self._files.store(ino)
        pieces = list(self._ledger.extents(ino))
        # Before the first await: none of them may move while the others get their windows.
        named = {one.source.segment for one in pieces if request["sealed"] or not one.source.form.is_sealed}
        for segment in named:
            self._ledger.keep_for_windows(segment, time.time() + seconds)
        await self._recoding.make_whole(named)
        found: dict[int, dict[str, Any]] = {}
        waiting = iter(enumerate(pieces))

        async def work() -> None:
            for number, piece in waiting:
                wanted = request["sealed"] or not piece.source.form.is_sealed
                rows = await self._windows(piece, seconds) if wanted else []
                found[number] = self._exported(piece, rows, keys=bool(request["keys"]))
                progress(number + 1, len(pieces), "")

        async with trio.open_nursery() as nursery:
            for _ in range(_SIDE_BY_SIDE):
                nursery.start_soon(work)
        return [found[number] for number in sorted(found)]

    def _exported(self, piece: Piece[SliceRef], rows: list[dict[str, Any]], *, keys: bool) -> dict[str, Any]:
        form, sealed = piece.source.form, None
        if form.is_sealed:
            key = self._imports.slice_key(form.epoch, form.slice_id) if keys else None
            sealed = ForeignSlice(form, piece.offset, key).as_row()
        return {"start": piece.start, "stop": piece.stop, "replicas": rows, "sealed": sealed}

    async def _windows(self, piece: Piece[SliceRef], seconds: int) -> list[dict[str, Any]]:
        form, at = piece.source.form, piece.source.segment_offset
        offset, length = at + form.header_size + piece.offset, piece.stop - piece.start
        if form.is_sealed:
            offset, length = at, form.stored_length
        rows = []
        self._ledger.keep_for_windows(piece.source.segment, time.time() + seconds)
        for replica in self._ledger.replicas(piece.source.segment):
            row = await self._open(_Window(replica, replica.base + offset, length), seconds, sealed=form.is_sealed)
            if row is not None:
                rows.append(row)
        return rows

    async def _open(self, window: _Window, seconds: int, *, sealed: bool) -> dict[str, Any] | None:
        """An alias that begins where the window does; without one, what shows nothing that is not sealed or foreign."""
        replica = window.replica
        depot = self._depots.get(replica.depot)
        place = _place(depot)
        if place is None:
            return None
        ends = [replica.lease_end] if replica.lease_end is not None else []
        if replica.is_managed:
            try:
                alias = await _alias(depot, window, seconds)
            except DepotUnreachable:
                return None
            except DepotError as error:
                _log.info("depot %s allocation %s: no window on it: %s", depot.address, replica.read.label, error)
            else:
                return _row(place, alias.read.wire_key, 0, window, [*ends, time.time() + seconds])
        if sealed or (replica.imported and not window.offset):
            return _row(place, replica.read, window.offset, window, ends)
        return None


async def _alias(depot: Depot, window: _Window, seconds: int) -> CapabilitySet:
    """For so long, or as long as the allocation itself."""

    async def ask(duration: int) -> CapabilitySet:
        return await depot.client.alias(window.replica.manage, window.offset, window.length, duration)

    try:
        return await depot.call(lambda: ask(seconds))
    except LeaseTooLong:
        return await depot.call(lambda: ask(0))


def _place(depot: Depot) -> Address | None:
    """Where the volume's record says that it is, whatever its capabilities say; None: where nobody else can go."""
    try:
        place = Address.parse(depot.address)
    except BadAddress:  # an embedded one that has not told its port yet
        return None
    return place if place.path is None else None


def _row(place: Address, read: Key, base: int, window: _Window, ends: list[float]) -> dict[str, Any]:
    return {
        "address": str(place), "base": base, "length": window.length, "read": pack_key(read),
        "lease_end": min(ends, default=None),
    }  # fmt: skip
