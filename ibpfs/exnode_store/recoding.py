"""Storing large segments as shards of an erasure code in place of whole copies, and the other way round.

All the new replicas are made beside the old ones; one transaction counts on the new ones and lets go of the old, so a
segment is the one or the other, never a mixture. Works without keys.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.copying import Copying
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.erasure import Code, Coded
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica
from ibpfs.exnode_store.placement import choose_depots, fullest_domain
from ibpfs.exnode_store.sealing import Buffer
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.verification import CHUNK, Verification, chunks

_log = logging.getLogger(__name__)

#: A segment with fewer bytes stays in whole copies: it is packed with others by and by, and small reads are cheaper.
LARGE = 4 * 1024 * 1024
#: Segments that are counted.
_MANY = 1_000_000
#: Seconds after which what could not be done is tried again.
_AGAIN = 60.0


class Recoding:
    """One per open volume."""

    def __init__(
        self, ledger: Ledger, depots: DepotSet, transfer: Transfer, verification: Verification, copying: Copying
    ) -> None:
        self._ledger = ledger
        self._depots = depots
        self._transfer = transfer
        self._verification = verification
        self._copying = copying
        self._failed: dict[int, float] = {}  # segments that could not be coded, and when

    async def code_some(self, most: int) -> int:
        """Code up to so many of the large segments whose policy asks for it; return how many were."""
        since = trio.current_time() - _AGAIN
        self._failed = {segment: at for segment, at in self._failed.items() if at > since}
        done = 0
        for segment, text in self._to_code(most + len(self._failed)):
            if segment in self._failed or segment in self._verification.damaged or done == most:
                continue
            try:
                await self.code(segment, Code.parse(text))
                done += 1
            except (DepotError, DepotUnreachable, DataError, NoSpace) as error:
                _log.info("segment %d: stays in whole copies: %s", segment, error)
                self._failed[segment] = trio.current_time()
        return done

    def waiting(self) -> int:
        """How many `code_some` would code, without an end."""
        return len(self._to_code(_MANY))

    def _to_code(self, most: int) -> list[tuple[int, str]]:
        codes = {
            text
            for text, labels in self._transfer.policies.codes(used=False)
            if not self.obstacle(Code.parse(text), labels)
        }
        return self._ledger.to_code(sorted(codes), LARGE, most) if codes else []

    def obstacle(self, code: Code, labels: Sequence[str], size: int = 0) -> str:
        """Why nothing can be stored in this code now, with shards of so many bytes; '' when it can."""
        chosen = self._choose(code, labels, size)
        if len(chosen) < code.shards:
            return f"{code} needs {code.shards} depots that answer and have room, and there are {len(chosen)}"
        domains = [depot.domain(labels) for depot in chosen]
        if fullest_domain(domains) > code.m:
            return (f"with {code} at most {code.m} shards may be lost, and {fullest_domain(domains)} would share a"
                    f" {' or '.join(labels)}")  # fmt: skip
        return ""

    def _choose(self, code: Code, labels: Sequence[str], size: int) -> list[Depot]:
        candidates = [depot.candidate(labels) for depot in self._depots]
        return [self._depots.get(number) for number in choose_depots(candidates, code.shards, size)]

    async def code(self, segment: int, code: Code) -> None:
        """Store a closed segment as shards, each on a depot of its own, instead of copies. Raises DepotError,
        DepotUnreachable, DataError; then all is as it was."""
        length = self._ledger.segment_length(segment)
        coded = Coded(code, code.shard_length(length))
        labels = self._transfer.policy(self._ledger.policy_of(segment)).labels
        if obstacle := self.obstacle(code, labels, coded.shard_length):
            raise DepotUnreachable(obstacle)
        depots = self._choose(code, labels, coded.shard_length)
        shards = await trio.to_thread.run_sync(code.encode, await self._whole(segment, length))
        made = await self._make(depots, shards, numbered=True, least=lambda: code.shards)
        if not self._ledger.may_code(segment, length):
            self._abandon(made)
            raise DataError("it has changed meanwhile")
        self._ledger.recode(segment, made, coded, shards)
        _log.info("segment %d: is stored as %s", segment, code)

    async def _whole(self, segment: int, length: int) -> bytes:
        """Its bytes, of which each slice is sound. DataError."""
        runs = self._ledger.stored_slices(segment)
        pieces = [
            await self._verification.load(segment, start, stop, inside)
            for start, stop, inside in chunks(runs, length, CHUNK)
        ]
        return b"".join(pieces)

    async def make_whole(self, segments: Iterable[int]) -> None:
        """For whoever needs whole copies, and has seen to it that these stay. Raises as `code`."""
        for segment in segments:
            await self.uncode(segment)

    def trouble(self) -> str:
        """Why what a policy wants coded stays in whole copies; '' when nothing is in the way."""
        for text, labels in self._transfer.policies.codes():
            if obstacle := self.obstacle(Code.parse(text), labels):
                return obstacle
        return ""

    async def uncode(self, segment: int) -> None:
        """Store a segment in whole copies again, as its policy asks. Raises as `code`; nothing to do is no error."""
        coded = self._ledger.coded(segment)
        if coded is None:
            return
        length = self._ledger.segment_length(segment)
        policy = self._transfer.policy(self._ledger.policy_of(segment))
        found = await self._transfer.sound_shards(segment)
        data = b"".join(await trio.to_thread.run_sync(coded.code.decode, found))[:length]
        candidates = [depot.candidate(policy.labels) for depot in self._depots]
        depots = [self._depots.get(number) for number in choose_depots(candidates, policy.copies, length)]

        def least() -> int:
            """As many losses as the shards that are at hand survive, if the policy asks for so many copies."""
            return max(policy.min_copies, min(policy.copies, self._shards_at_hand(segment) - coded.code.k + 1))

        made = await self._make(depots, [data] * len(depots), numbered=False, least=least)
        if self._ledger.coded(segment) != coded or self._ledger.segment_length(segment) != length:
            self._abandon(made)
            return
        self._ledger.recode(segment, made, None, ())
        _log.info("segment %d: is stored in whole copies again", segment)

    def _shards_at_hand(self, segment: int) -> int:
        theirs = self._ledger.replicas(segment)
        return len({one.shard for one in theirs if not one.suspect and self._transfer.is_at_hand(one)})

    async def _make(
        self, depots: Sequence[Depot], contents: Sequence[Buffer], *, numbered: bool, least: Callable[[], int]
    ) -> list[NewReplica]:
        """All side by side; DepotUnreachable when fewer than `least`, asked then, come to be."""
        made: list[NewReplica] = []
        troubles: list[str] = []

        async def put(number: int, depot: Depot) -> None:
            try:
                made.append(await self._copying.put(depot, contents[number], number if numbered else None))
            except (DepotError, DepotUnreachable, NoSpace, OSError) as error:
                troubles.append(f"{depot.address}: {error}")

        try:
            async with trio.open_nursery() as nursery:
                for number, depot in enumerate(depots):
                    nursery.start_soon(put, number, depot)
            if len(made) < (needed := least()):
                raise DepotUnreachable("; ".join(troubles) or f"{needed} depots are needed, and there are {len(made)}")
        except BaseException:
            self._abandon(made)
            raise
        return made

    def _abandon(self, made: Sequence[NewReplica]) -> None:
        self._ledger.abandon_pending([one.pending for one in made])
