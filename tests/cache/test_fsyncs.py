"""Who waits for an fsync, and for how long others take that into account."""

import trio
import trio.testing

from ibpfs.cache.fsyncs import Fsyncs


async def test_they_go_on_for_a_moment_after_the_last_one(autojump_clock: trio.testing.MockClock) -> None:
    fsyncs = Fsyncs()
    assert not fsyncs.go_on
    with fsyncs:
        await trio.sleep(10)
        assert fsyncs.go_on
    assert fsyncs.go_on
    await trio.sleep(0.2)
    assert not fsyncs.go_on


async def test_one_of_them() -> None:
    fsyncs = Fsyncs()
    with fsyncs:
        assert fsyncs.are_one
        with fsyncs:
            assert not fsyncs.are_one
        assert fsyncs.are_one
