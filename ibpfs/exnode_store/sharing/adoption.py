"""Slices that came in with a link, brought to depots of the volume's own before the link ends."""

import logging
from dataclasses import dataclass
from typing import Final

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.imports import Imports
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.sealing import DIGEST_NAME, Buffer, FrameError, SliceForm, digest, unseal
from ibpfs.exnode_store.transfer import Transfer

_log = logging.getLogger(__name__)

#: Seconds between looks for slices to bring over, and after one that could not be had.
_LOOK_EVERY: Final = 2.0
_RETRY_EVERY: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Adopted:
    """A slice that lies in somebody else's allocation."""

    row: int
    form: SliceForm
    segment: int
    offset: int
    policy: int


class Adoption:
    """One per open volume. Stored bytes move as they are, once every frame has been opened."""

    def __init__(self, db: Database, ledger: Ledger, transfer: Transfer, imports: Imports, seed: int) -> None:
        self._db = db
        self._ledger = ledger
        self._transfer = transfer
        self._imports = imports
        self._seed = seed

    async def run(self) -> None:
        """Bring over what there is, for ever; the owner runs this as a task."""
        while True:
            fine = await self.bring_all()
            await trio.sleep(_LOOK_EVERY if fine else _RETRY_EVERY)

    async def bring_all(self) -> bool:
        """False when some could not be had, or stored, now."""
        self._forget_gone()
        fine = True
        for one in self._waiting():
            try:
                await self._bring(one)
            except (DataError, DepotError, DepotUnreachable, NoSpace) as error:
                _log.info("slice %d, adopted from a link: not copied yet: %s", one.row, error)
                fine = False
        return fine

    def _forget_gone(self) -> None:
        if self._db.row("SELECT 1 FROM adopted WHERE slice NOT IN (SELECT id FROM slices) LIMIT 1"):
            with self._db.transaction() as db:
                db.execute("DELETE FROM adopted WHERE slice NOT IN (SELECT id FROM slices)")

    def _waiting(self) -> list[_Adopted]:
        # CROSS: else SQLite begins with the slices, of which there may be millions (9 ms for 60,000, every 2 s).
        rows = self._db.rows(
            "SELECT s.id, s.slice_id, s.origin, s.epoch, s.function, s.frame_size, s.length, s.segment,"
            " s.segment_offset, g.policy FROM adopted a CROSS JOIN slices s ON s.id = a.slice"
            " JOIN segments g ON g.id = s.segment ORDER BY a.slice LIMIT 1000"
        )
        return [_Adopted(row, SliceForm(*form), *place) for row, *rest in rows
                for form, place in [(rest[:6], rest[6:])]]  # fmt: skip

    async def _bring(self, one: _Adopted) -> None:
        stored = await self._load(one)
        policy = self._transfer.policy(one.policy)
        target, offset = await self._transfer.append(policy, [stored], len(stored))
        check = digest(self._seed, [stored])
        try:
            with self._transfer.committing(target) as segment:
                self._ledger.move(segment, offset + len(stored), [(one.row, offset)])
                self._db.execute(
                    "UPDATE slices SET digest = ?, digest_name = ? WHERE id = ?", (check, DIGEST_NAME, one.row)
                )
                self._db.execute("DELETE FROM adopted WHERE slice = ?", (one.row,))
        finally:
            await self._transfer.release(target)

    async def _load(self, one: _Adopted) -> Buffer:
        liars: frozenset[int] = frozenset()
        key = self._imports.slice_key(one.form.epoch, one.form.slice_id)
        while True:
            end = one.offset + one.form.stored_length
            loaded = await self._transfer.load(one.segment, one.offset, end, avoid=liars)
            if await trio.to_thread.run_sync(_is_sound, one.form, key, loaded.data):
                return loaded.data
            liars |= await self._transfer.blame(loaded.givers, "bytes differ from what was sealed")


def _is_sound(form: SliceForm, key: bytes, stored: Buffer) -> bool:
    header = form.header_size
    try:
        unseal(form, key, 0, memoryview(stored)[header:])
    except FrameError:
        return False
    return bytes(stored[:header]) == form.header()
