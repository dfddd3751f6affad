"""Compaction of segments: stored bytes move as they are, no key is needed. What is worth it: `compaction`."""

import logging
from collections.abc import Set

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.compaction import plan_packing
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import StoredRun
from ibpfs.exnode_store.policies import Policy
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import Verification

_log = logging.getLogger(__name__)

#: Stored bytes that one append of compaction moves, and one look.
_MOVE_AT_ONCE = 4 * 1024 * 1024
_SLICES_AT_ONCE = 256
MOVE_PER_LOOK = 64 * 1024 * 1024


class Packing:
    """Moves what lives in segments that are not worth keeping."""

    def __init__(self, ledger: Ledger, transfer: Transfer, verification: Verification) -> None:
        self._ledger = ledger
        self._transfer = transfer
        self._verification = verification
        self._turn = trio.Lock()

    async def pack(self, most: int) -> int:
        """Move live slices out of half-dead and small segments, at most about `most` bytes; return how many."""
        async with self._turn:
            return await self._pack(most)

    async def _pack(self, most: int) -> int:
        moved = 0
        packing = {row[0]: row for row in self._ledger.packing()}
        for segment in plan_packing(list(packing.values())):
            if moved >= most:
                break
            policy = self._transfer.policy(packing[segment][1])
            # With fewer depots each append has a segment of its own: small ones would only make small ones.
            if segment in self._verification.damaged or self._transfer.answering() < policy.copies:
                continue
            try:
                moved += await self._move(segment, policy)
            except DataError as error:
                _log.info("segment %d: not compacted yet: %s", segment, error)
            except (DepotError, DepotUnreachable, NoSpace) as error:
                _log.info("segment %d: not compacted yet: %s", segment, error)
                break
        return moved

    async def move_slices(self, segment: int, rows: Set[int], policy: Policy) -> int:
        """Move these slices of a segment into one of another policy; return their stored bytes.

        Those that are held, or in a window of an export, stay. Raises DataError, DepotError, DepotUnreachable, NoSpace.
        """
        if segment in self._verification.damaged or segment not in {row[0] for row in self._ledger.packing()}:
            return 0
        if (answering := self._transfer.answering()) < policy.copies:
            raise DepotUnreachable(f"{policy.copies} copies are wanted and {answering} depots answer")
        async with self._turn:
            return await self._move(segment, policy, rows)

    async def _move(self, segment: int, policy: Policy, rows: Set[int] | None = None) -> int:
        batch: list[StoredRun] = []
        moved = size = 0
        for run in self._ledger.stored_slices(segment):
            if rows is not None and run.row not in rows:
                continue
            if batch and (size + run.length > _MOVE_AT_ONCE or len(batch) == _SLICES_AT_ONCE):
                await self._move_batch(segment, policy, batch)
                batch, size = [], 0
            batch.append(run)
            size += run.length
            moved += run.length
        if batch:
            await self._move_batch(segment, policy, batch)
        return moved

    async def _move_batch(self, segment: int, policy: Policy, batch: list[StoredRun]) -> None:
        pieces = await self._verification.slices(segment, batch)
        length = sum(run.length for run in batch)
        target, offset = await self._transfer.append(policy, pieces, length)
        moves: list[tuple[int, int]] = []
        at = offset
        for run in batch:
            moves.append((run.row, at))
            at += run.length
        try:
            if not target.sound:
                raise DepotUnreachable(f"{policy.copies} copies are wanted and not all depots took the bytes")
            with self._transfer.committing(target) as row:
                self._ledger.move(row, at, moves)
        finally:
            await self._transfer.release(target)
