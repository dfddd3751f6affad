"""Loading bytes of a segment that is stored as shards: from the shards that hold them, or from any K others.

A healthy read is a plain one, of one data shard nearly always.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio

from ibpfs.depot.client import ShortLoad
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, Unreadable
from ibpfs.errors import DataError
from ibpfs.exnode_store.erasure import Coded
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.sources import Loaded, Sources

_log = logging.getLogger(__name__)


class ShardLoading(Sources):
    """Of coded segments."""

    async def _load_coded(self, coded: Coded, replicas: Sequence[Replica], start: int, stop: int) -> Loaded:
        """One try to get bytes [start, stop) of a segment, from these of its shards. DataError."""
        spans = coded.spans(start, stop)
        if len(spans) == 1:
            return await self._load_span(coded, replicas, *spans[0])
        found: dict[int, Loaded] = {}
        troubles: list[DataError] = []

        async def load(number: int) -> None:
            try:
                found[number] = await self._load_span(coded, replicas, *spans[number])
            except DataError as error:
                troubles.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(len(spans)):
                nursery.start_soon(load, number)
        if troubles:
            raise troubles[0]
        return _joined([found[number] for number in range(len(spans))])

    async def _load_span(
        self, coded: Coded, replicas: Sequence[Replica], shard: int, begin: int, end: int
    ) -> Loaded:
        """Bytes [begin, end) of one data shard."""
        order = self._order(replicas)
        others = [one for one in order if one.shard != shard]
        at_hand = {one.shard for one in others if self.is_at_hand(one) and not one.suspect}
        decode = partial(self._decode, coded, others, shard, begin, end)
        tried: set[int] = set()
        for replica in order:
            if replica.shard != shard or replica.suspect:
                continue
            try:
                length = self._waited_for(replica, end - begin)
                with self._bounded(replica, length, alone=len(at_hand) < coded.code.k):
                    patience = self._depots.get(replica.depot).records.loads.expected(end - begin)
                    if patience is None or len(at_hand) < coded.code.k:
                        return await self.load_from(replica, begin, end)
                    return await self._hedged(partial(self.load_from, replica, begin, end), decode, patience)
            except (DepotError, DepotUnreachable, DataError) as error:
                self._failed(replica, error)
                tried.add(replica.id)
        # The shard itself, too, where it is suspect: the last to be asked.
        left = [one for one in order if one.id not in tried]
        return await self._decode(coded, left, shard, begin, end)

    async def _decode(self, coded: Coded, replicas: Sequence[Replica], shard: int, begin: int, end: int) -> Loaded:
        """The same from any K of these shards, those named first before others. DataError."""
        waiting = list(dict.fromkeys(one.shard for one in replicas))
        found: dict[int, Loaded] = {}

        async def work() -> None:
            while waiting:
                number = waiting.pop(0)
                loaded = await self._column([one for one in replicas if one.shard == number], begin, end)
                if number is not None and loaded is not None:
                    found[number] = loaded
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(coded.code.k):
                nursery.start_soon(work)
        if len(found) < coded.code.k and shard not in found:
            raise DataError(f"{len(found)} of the {coded.code.k} shards that are needed can be read")
        if shard in found:
            return found[shard]
        columns = {number: one.data for number, one in found.items()}
        data = await trio.to_thread.run_sync(coded.code.rebuild, columns, shard)
        used = list(found.values())
        return Loaded(data, used[0].replica, used[0].label, tuple(one.replica for one in used[1:]))

    async def _column(self, alike: Sequence[Replica], begin: int, end: int) -> Loaded | None:
        """From the first of replicas of one shard that gives it."""
        for replica in alike:
            try:
                with self._bounded(replica, self._waited_for(replica, end - begin), alone=False):
                    loaded = await self.load_from(replica, begin, end)
                if len(loaded.data) == end - begin:
                    return loaded
                self.report(replica.id, f"{len(loaded.data)} bytes came where {end - begin} are")
            except (DepotError, DepotUnreachable) as error:
                self._failed(replica, error)
        return None

    def _failed(self, replica: Replica, error: Exception) -> None:
        if isinstance(error, CapabilityNotFound | ShortLoad | Unreadable):
            self.report(replica.id, str(error))
        else:  # that a depot is silent has been said of the depot
            _log.info("segment %d: %s", replica.segment, self._describe(replica, error))

    # Who lied

    async def blame(self, givers: Sequence[int], reason: str) -> frozenset[int]:
        """What these replicas gave together is wrong: report those to blame, and return them, one at least.

        Of several shards, those that differ from their digests.
        """
        if len(givers) == 1:
            self.report(givers[0], reason)
            return frozenset(givers)
        used = [self._ledger.replica(number) for number in givers]
        bad = {one.id for one in used if one is not None and await self.shard_fault(one)}
        for number in bad:
            self.report(number, reason)
        return frozenset(bad or givers[:1])

    async def shard_fault(self, replica: Replica) -> str:
        """What is wrong with a shard; '' when nothing is, or its depot cannot tell now."""
        try:
            await self.load_shard(replica)
        except DataError as error:
            return str(error)
        except (DepotError, DepotUnreachable):
            return ""
        return ""

    async def load_shard(self, replica: Replica) -> bytes | bytearray:
        """All bytes of a shard, as its digest says. DataError where it is not sound; DepotError, DepotUnreachable when
        that cannot be told."""
        assert replica.shard is not None
        try:
            data = (await self.load_from(replica, 0, self._ledger.stored_length(replica))).data
        except (CapabilityNotFound, ShortLoad, Unreadable) as error:
            raise DataError(str(error)) from error
        if not self._ledger.is_sound_shard(replica.segment, replica.shard, data):
            raise DataError(DIFFERS)
        return data

    async def shard(self, segment: int, number: int) -> bytes | bytearray:
        """One whole shard of a segment, from where it lies, or made from K others. DataError."""
        for replica in self._order(self._ledger.replicas(segment)):
            if replica.shard == number:
                with suppress(DataError, DepotError, DepotUnreachable):
                    return await self._load_soon(replica)
        found, coded = await self.sound_shards(segment), self._ledger.coded(segment)
        if coded is None:
            raise DataError(f"segment {segment}: is no longer stored as shards")
        made = await trio.to_thread.run_sync(coded.code.rebuild, found, number)
        if not self._ledger.is_sound_shard(segment, number, made):
            raise DataError(f"segment {segment}: shard {number} comes out otherwise than it was")
        return made

    async def _load_soon(self, replica: Replica) -> bytes | bytearray:
        with self._bounded(replica, self._ledger.stored_length(replica), alone=False):
            return await self.load_shard(replica)
        raise AssertionError("unreachable")

    async def sound_shards(self, segment: int) -> dict[int, bytes | bytearray]:
        """K whole shards of a segment, each compared with its digest, by number. DataError when there are fewer."""
        coded = self._ledger.coded(segment)
        if coded is None:
            raise DataError(f"segment {segment}: is not stored as shards")
        found: dict[int, bytes | bytearray] = {}
        for replica in self._order(self._ledger.replicas(segment)):
            if len(found) == coded.code.k or replica.shard is None or replica.shard in found:
                continue
            try:
                found[replica.shard] = await self._load_soon(replica)
            except DataError as error:
                self.report(replica.id, str(error))
            except (DepotError, DepotUnreachable) as error:
                _log.info("segment %d: %s", segment, self._describe(replica, error))
        if len(found) < coded.code.k:
            raise DataError(f"segment {segment}: {len(found)} of the {coded.code.k} shards that are needed are at hand")
        return found


DIFFERS = "stored bytes differ from their digest"


def _joined(loaded: Sequence[Loaded]) -> Loaded:
    replicas = dict.fromkeys(number for one in loaded for number in one.givers)
    first, *others = replicas
    return Loaded(b"".join([one.data for one in loaded]), first, loaded[0].label, tuple(others))
