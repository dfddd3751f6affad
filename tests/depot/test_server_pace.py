"""How slow peers may be, what they may hold, and who is let in."""

from ipaddress import ip_address

import trio

from ibpfs.depot.server.door import SHORTEST_IDLE, Door
from ibpfs.depot.server.pace import ALWAYS, InFlight, Pace

HERE, THERE, ELSEWHERE = ip_address("127.0.0.1"), ip_address("192.0.2.1"), ip_address("192.0.2.2")


def test_who_trickles_runs_out_of_patience() -> None:
    pace = Pace(100)
    for _ in range(9):
        pace.waited(1)
        pace.moved(1)
    assert 0.9 < pace.patience(10) < 1.1
    pace.waited(2)
    assert pace.patience(10) == 0
    pace.begin()
    assert pace.patience(10) == 10


def test_who_is_fast_enough_is_waited_for_without_end() -> None:
    pace = Pace(100)
    for _ in range(1000):
        pace.waited(9.9)
        pace.moved(1000)
        assert 0 < pace.patience(10) <= 10


def test_no_least_rate() -> None:
    pace = Pace(0)
    pace.waited(1e6)
    assert pace.patience(10) == 10


def test_who_holds_little_is_never_the_one_to_go() -> None:
    held = InFlight(3 * ALWAYS)
    assert held.change(0, 3 * ALWAYS)
    assert held.change(0, ALWAYS)
    assert not held.change(0, ALWAYS + 1)
    assert held.change(ALWAYS, 0)
    assert held.held == 4 * ALWAYS + 1


def test_connections_are_counted_per_address_and_in_all() -> None:
    door = Door(3, 2)
    door.enter(THERE)
    door.enter(THERE)
    assert door.refusal(THERE) == "address"
    assert door.refusal(ELSEWHERE) is None
    door.enter(ELSEWHERE)
    assert door.refusal(HERE) == "all"
    assert door.refusal(None) is None
    door.leave(ELSEWHERE)
    assert door.refusal(HERE) is None
    door.leave(THERE)
    assert door.refusal(THERE) is None


def test_this_machine_may_have_all_connections() -> None:
    for origin, most in ((HERE, 1000), (THERE, Door.DEFAULT_PER_ADDRESS)):
        door = Door(1000, None)
        for _ in range(most):
            assert door.refusal(origin) is None
            door.enter(origin)
        assert door.refusal(origin) is not None


class Guest:
    def __init__(self) -> None:
        self.dismissed = False

    def dismiss(self) -> None:
        self.dismissed = True


async def test_in_a_full_house_the_idlest_goes(autojump_clock: trio.testing.MockClock) -> None:
    door, first, second = Door(2, None), Guest(), Guest()
    door.enter(HERE)
    door.enter(HERE)
    door.rests(first)
    await trio.sleep(0.1)
    door.rests(second)
    assert door.refusal(HERE) == "all"
    await trio.sleep(SHORTEST_IDLE)
    assert door.refusal(THERE) is None
    assert (first.dismissed, second.dismissed) == (True, False)
    door.rises(second)
    assert door.refusal(THERE) == "all"
