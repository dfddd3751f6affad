"""Further copies of what depots have already (augment): from depot to depot where they let each other, else by way of
this machine."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilitySet
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, IbpfsError
from ibpfs.exnode_store.documents.conditioning import BadConditioning
from ibpfs.exnode_store.documents.exnode import ExNode, Mapping
from ibpfs.exnode_store.lors.fetching import PIECE, best_first, describe, load_stored
from ibpfs.exnode_store.lors.plans import cover
from ibpfs.exnode_store.lors.storing import Allocated, Placer, Wishes, append, described
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel

#: Bytes that a depot is asked to send to another at once, and for how many seconds it may be silent about it.
_SENT_AT_ONCE: Final = 16 * 1024 * 1024
_SEND_PATIENCE: Final = 60


async def augment(
    exnode: ExNode, depots: Depots, addresses: Sequence[Address], wishes: Wishes, advance: Advance
) -> tuple[ExNode, int]:
    """Return the exNode with `wishes.copies` more replicas of everything, stored as it is, from byte 0 of their own
    allocations, on depots that have none of that range; and how many of them depots made among themselves.

    All copies are made, or none.
    """
    placer = Placer(depots, addresses, wishes)
    try:
        return await _Augment(exnode, depots, placer, wishes, advance).run()
    except BaseException:
        await placer.give_back()
        raise


class _Augment:
    def __init__(
        self, exnode: ExNode, depots: Depots, placer: Placer, wishes: Wishes, advance: Advance
    ) -> None:
        self._exnode, self._depots, self._placer, self._wishes = exnode, depots, placer, wishes
        self._groups = [[exnode.mappings[n] for n in group] for group in cover(exnode.mappings, exnode.size)]
        self._taken: list[set[Address]] = [_holders(exnode, group[0]) for group in self._groups]
        self._counter = Counter(wishes.copies * sum(group[0].length for group in self._groups), advance)
        self._found: dict[tuple[int, int], Mapping] = {}
        self._apart: set[tuple[Address, Address]] = set()  # a depot that does not send to the other
        self._sent = 0

    async def run(self) -> tuple[ExNode, int]:
        jobs = [(number, copy) for number in range(len(self._groups)) for copy in range(self._wishes.copies)]
        await in_parallel(jobs, self._copy, self._wishes.streams)
        found = tuple(self._found[job] for job in jobs)
        return replace(self._exnode, mappings=(*self._exnode.mappings, *found)), self._sent

    async def _copy(self, job: tuple[int, int]) -> None:
        number, copy = job
        troubles: list[str] = []
        for source in best_first(self._depots, self._groups[number], copy):
            if source.conditioned and source.alloc_length == 0:
                continue
            try:
                made = await self._copy_from(source, number + copy, number)
            except _SourceLost as lost:
                troubles.append(describe(source, lost.error))
                continue
            bare = replace(source, alloc_offset=0, alloc_length=_stored(source), doubtful=False, fields={})
            self._found[job] = described(bare, made)
            self._counter.add(source.length)
            return
        first = self._groups[number][0]
        why = "; ".join(troubles[:3]) or "nothing is stored"
        raise DataError(f"bytes {first.offset} to {first.stop} cannot be copied: {why}")

    async def _copy_from(self, source: Mapping, turn: int, number: int) -> Allocated:
        length = _stored(source)

        async def fill(made: CapabilitySet) -> None:
            if self._may_send(source, made):
                await self._send(source, made, length)
            else:
                await self._carry(source, made, length)

        while True:
            try:
                return await self._placer.put(turn, length, self._taken[number], fill)
            except _NotSent:  # perhaps half of it: the next try has a new allocation
                continue

    def _may_send(self, source: Mapping, made: CapabilitySet) -> bool:
        return source.read is not None and not source.doubtful and _pair(source, made) not in self._apart

    async def _send(self, source: Mapping, made: CapabilitySet, length: int) -> None:
        """The source's depot stores the bytes on the other one."""
        assert source.read is not None
        depot = self._depots.of(source.read)
        try:
            for begin in range(0, length, _SENT_AT_ONCE):
                size = min(_SENT_AT_ONCE, length - begin)
                offset = source.alloc_offset + begin
                sent = await depot.copy(source.read.wire_key, made.write, offset, size, seconds=_SEND_PATIENCE)
                if sent != size:
                    raise _NotSent
        except (DepotError, DepotUnreachable, _NotSent):
            self._apart.add(_pair(source, made))
            raise _NotSent from None
        self._sent += 1

    async def _carry(self, source: Mapping, made: CapabilitySet, length: int) -> None:
        for begin in range(0, length, PIECE):
            try:
                data = await load_stored(self._depots, source, begin, min(begin + PIECE, length))
            except (DepotError, DepotUnreachable, BadConditioning) as error:
                raise _SourceLost(error) from error
            await append(self._depots, made.write, [data])


class _NotSent(IbpfsError):
    """A depot did not send to another: it must not, it cannot, or one of them is ill."""


class _SourceLost(IbpfsError):
    """The replica that was to be copied cannot be read."""

    def __init__(self, error: IbpfsError) -> None:
        super().__init__(str(error))
        self.error = error


def _stored(mapping: Mapping) -> int:
    return mapping.alloc_length if mapping.conditioned else mapping.length


def _holders(exnode: ExNode, range_: Mapping) -> set[Address]:
    """The depots that have some of these bytes: another copy there would die with the first."""
    return {
        Address.of(one.capability).place
        for one in exnode.mappings
        if one.capability and one.offset < range_.stop and range_.offset < one.stop
    }


def _pair(source: Mapping, made: CapabilitySet) -> tuple[Address, Address]:
    assert source.read is not None
    return Address.of(source.read).place, Address.of(made.write).place
