"""What is wrong with a depot, or the clock, from what is known of them."""

import pytest

from ibpfs.exnode_store.findings import DepotView, clock_off, judge_clock, judge_depot

WELL = DepotView("ibp://host:1", True, True, False, "", "", 1 << 40, "", 0)
DAY = 86400.0


def codes(view: DepotView) -> list[str]:
    return [one.code for one in judge_depot(view, "volume")]


def changed(**values: object) -> DepotView:
    return DepotView(**{**{name: getattr(WELL, name) for name in DepotView.__slots__}, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"is_up": False}, ["depot-down"]),
        ({"is_up": False, "is_mute": True, "free_bytes": 0}, ["depot-silent"]),
        ({"is_up": False, "ended": 3}, ["depot-down", "lease-ended"]),
        ({"refusal": "no"}, ["depot-refuses"]),
        ({"free_bytes": 1000}, ["depot-full"]),
        ({"free_bytes": 1000, "is_active": False}, []),
        ({"free_bytes": None}, []),
        ({"not_renewed": "no", "ended": 3}, ["renewal-refused"]),
    ],
)
def test_depots(values: dict[str, object], expected: list[str]) -> None:
    assert codes(changed(**values)) == expected


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        ("ibp://host:1: nobody listens there", "nobody listens there"),
        ("ibp://host:1: the connection was dropped", "nobody listens there (the connection was dropped)"),
        ("", "nobody listens there (no answer)"),
    ],
)
def test_why_a_depot_is_down_is_said_once(trouble: str, cause: str) -> None:
    (finding,) = judge_depot(changed(is_up=False, trouble=trouble), "volume")
    assert finding.cause == cause


def test_the_clock_is_off_when_all_leases_say_so() -> None:
    assert clock_off([]) is None
    assert clock_off([2.0, -1.0, 0.5]) is None
    assert clock_off([-DAY, -DAY + 2, -DAY - 1]) == pytest.approx(DAY, abs=3)
    assert clock_off([DAY]) == -DAY
    assert clock_off([-DAY, 0.0, -DAY]) is None  # another machine has renewed some


def test_how_that_is_told() -> None:
    told = judge_clock(DAY, "v").cause
    assert told == "this machine's clock is 1.0 days ahead of the one that its leases were told by"
    assert "5.0 hours behind the one" in judge_clock(-5 * 3600, "v").cause
