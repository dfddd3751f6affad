"""Who may ask for how much."""

from ibpfs.gateway.limits import Gate, Limits, network_of

LINK, OTHER = "AQ0123456789", "AQ9876543210"


def test_a_burst_and_then_the_rate() -> None:
    gate = Gate(Limits(rate=2, burst=3))
    assert [gate.wait("192.0.2.1", 0.0) for _ in range(3)] == [0.0] * 3
    assert gate.wait("192.0.2.1", 0.0) == 0.5
    assert gate.wait("192.0.2.2", 0.0) == 0.0
    assert gate.wait("192.0.2.1", 0.5) == 0.0
    assert [gate.wait("192.0.2.1", 1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_loads_are_counted_while_they_run() -> None:
    gate = Gate(Limits(loads_per_address=2, loads=3))
    assert [gate.begin_load("192.0.2.1", LINK, 0.0) for _ in range(3)] == [True, True, False]
    assert [gate.begin_load("192.0.2.2", LINK, 0.0) for _ in range(2)] == [True, False]
    gate.end_load("192.0.2.1", LINK)
    assert gate.begin_load("192.0.2.2", LINK, 0.0)
    assert not gate.begin_load("192.0.2.1", LINK, 0.0)


def test_a_crowd_at_one_link_leaves_room_for_others() -> None:
    gate = Gate(Limits(loads_per_link=3, loads=4))
    crowd = [f"192.0.2.{number}" for number in range(5)]
    assert [gate.begin_load(one, LINK, 0.0) for one in crowd] == [True, True, True, False, False]
    assert [gate.begin_load(one, OTHER, 0.0) for one in crowd[:2]] == [True, False]
    gate.end_load(crowd[3], OTHER)
    assert not gate.begin_load(crowd[3], LINK, 0.0)
    gate.end_load(crowd[0], LINK)
    assert gate.begin_load(crowd[3], LINK, 0.0)
    for one in crowd[1:4]:
        gate.end_load(one, LINK)
    assert not gate._links


def test_bytes_are_counted_too() -> None:
    gate = Gate(Limits(bytes=100))
    assert gate.begin_load("192.0.2.1", LINK, 0.0, 60)
    assert not gate.begin_load("192.0.2.2", LINK, 0.0, 60)
    gate.end_load("192.0.2.1", LINK, 60)
    assert gate.begin_load("192.0.2.2", LINK, 0.0, 60)


def test_a_load_that_turns_out_to_be_larger_is_counted_whole() -> None:
    gate = Gate(Limits(bytes=100))
    assert gate.begin_load("192.0.2.1", LINK, 0.0)
    assert gate.more("192.0.2.1", LINK, 60)
    assert not gate.more("192.0.2.1", LINK, 60)
    assert not gate.begin_load("192.0.2.2", LINK, 0.0, 60)
    gate.end_load("192.0.2.1", LINK, 60)
    assert gate.begin_load("192.0.2.2", LINK, 0.0, 60)


MIB = 1024 * 1024


def test_many_addresses_with_many_links_leave_room_for_others() -> None:
    """Whatever they take, who has nothing yet gets something; when they end, nothing of it is left."""
    for size in (0, 8 * MIB):
        gate = Gate(Limits())
        begun = []
        for _ in range(100):
            for number in range(20):
                one = f"192.0.2.{number}", f"{LINK}{number}"
                if gate.begin_load(*one, 0.0, size):
                    begun.append(one)
        assert gate.begin_load("198.51.100.1", OTHER, 0.0, 8 * MIB)
        assert not gate.has_all("192.0.2.1", f"{LINK}1")  # it is the others that are in its way
        for one in begun:
            gate.end_load(*one, size)
        gate.end_load("198.51.100.1", OTHER, 8 * MIB)
        assert (gate._all.loads, gate._all.bytes, gate._links) == (0, 0, {})


def test_one_alone_is_not_held_back() -> None:
    gate = Gate(Limits())
    assert [gate.begin_load("192.0.2.1", LINK, 0.0, 8 * MIB) for _ in range(17)] == [True] * 16 + [False]
    assert gate.has_all("192.0.2.1", OTHER)
    assert not gate.has_all("192.0.2.2", LINK)


def test_many_addresses_are_forgotten_a_few_at_a_time() -> None:
    gate = Gate(Limits(loads_per_address=1))
    gate.begin_load("198.51.100.1", LINK, 0.0)
    for number in range(20_000):
        before = len(gate._askers)
        gate.wait(f"10.0.{number // 256}.{number % 256}", 0.0)
        assert before - 1 <= len(gate._askers) <= 10_001
    assert not gate.begin_load("198.51.100.1", LINK, 0.0)
    gate.end_load("198.51.100.1", LINK)


def test_who_has_one_ipv6_address_has_many() -> None:
    assert network_of("2001:db8:1:2:3::4") == network_of("2001:db8:1:2::99") != network_of("2001:db8:1:3::4")
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("nobody") == "nobody"
