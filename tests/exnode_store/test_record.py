"""What goes on a depot's record: commands that were answered, and those that were given up after long."""

import pytest
import trio
from trio.testing import MockClock

from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store.record import Record, Records


async def work(record: Record, seconds: float, *, given_up: float = 1000.0, times: int = 1) -> None:
    for _ in range(times):
        with trio.move_on_after(given_up), record.timing(4096):
            await trio.sleep(seconds)


async def test_what_was_given_up_soon_makes_no_depot_look_quick(autojump_clock: MockClock) -> None:
    record = Record()
    await work(record, 0.5, times=20)
    usual = record.expected(4096)
    await work(record, 0.5, given_up=0.001, times=20)
    assert record.expected(4096) == usual
    assert usual == pytest.approx(0.5, rel=0.1)


async def test_what_failed_is_another_matter(autojump_clock: MockClock) -> None:
    record = Record()
    for _ in range(20):
        with pytest.raises(DepotUnreachable), record.timing(4096):
            raise DepotUnreachable("nobody listens there")
    assert record.expected(4096) is None


async def test_slow_is_who_was_given_up_after_long_or_is_waited_for(autojump_clock: MockClock) -> None:
    peer = Records()
    await work(peer.loads, 0.01, times=20)
    given_up, waited_for = Records(), Records()
    await work(given_up.loads, 20, given_up=3)
    assert given_up.are_slow([peer])
    assert not peer.are_slow([given_up])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, waited_for.stores, 20)
        await work(peer.stores, 0.01, times=20)
        await trio.sleep(3)
        assert waited_for.stores.flying == 1
        assert waited_for.are_slow([peer])
        nursery.cancel_scope.cancel()
    await trio.sleep(16)
    assert not given_up.are_slow([peer])  # another chance
    assert not waited_for.are_slow([peer])


async def tries(slow: Records, peer: Records, seconds: float) -> int:
    """How often it is asked within some time, by a reader who leaves it alone while it is slow."""
    until, count = trio.current_time() + seconds, 0
    while trio.current_time() < until:
        await work(peer.loads, 0.01, times=20)
        if slow.are_slow([peer]):
            await trio.sleep(1)
        else:
            count += 1
            await work(slow.loads, 7)
    return count


async def test_who_stays_slow_gets_another_chance_ever_less_often(autojump_clock: MockClock) -> None:
    slow, peer = Records(), Records()
    assert await tries(slow, peer, 300) in range(5, 7)
    assert await tries(slow, peer, 1300) in range(8, 12)  # every two minutes
    await trio.sleep(300)
    await work(slow.loads, 7)  # it is long ago: that is a new beginning
    await work(peer.loads, 0.01, times=20)
    assert slow.are_slow([peer])
    await trio.sleep(16)
    assert not slow.are_slow([peer])
