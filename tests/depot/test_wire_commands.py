"""Command lines: tolerance towards real clients, refusals, and round trips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.capability import Capability, CapabilityKind, Key
from ibpfs.depot.wire import AllocationKind, DigestType, LocalProtocolError, Opcode, Reliability
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.commands import _PARSERS, parse_command, render_command
from ibpfs.depot.wire.protocol import MAX_NUMBER

K = Key("1#bIJHzedg9wSlWvpsYKXJPS2wPtS3bdIl", "3862277")
L = f"{K.key} {K.type_key}"

token = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1)
keys = st.builds(Key, token, token)
sizes = st.integers(0, MAX_NUMBER)
base = {"version": st.integers(0, 1), "timeout": st.integers(0, MAX_NUMBER)}
kinds = st.sampled_from(CapabilityKind)
# The resource has a field in version 1 only.
leases = st.integers(1, MAX_NUMBER)
rids = st.integers(0, 99).map(str)
v1 = {**base, "version": st.just(1)}
v0 = {**base, "version": st.just(0)}
checksums = st.none() | st.builds(ev.Checksum, st.sampled_from(DigestType), st.integers(1, 2**31))
ranges = st.lists(st.tuples(sizes, st.integers(0, 2**40)), max_size=9).map(tuple)
remotes = {
    kind: st.builds(
        Capability, st.sampled_from(["h", "127.0.0.1", "::1"]), st.integers(1, 65535), token, token, st.just(kind)
    )
    for kind in (CapabilityKind.READ, CapabilityKind.WRITE)
}
hosts = st.sampled_from(["example.org", "127.0.0.1", "::1"])
ports, allowed = st.integers(1, 65535), {"target_timeout": st.integers(1, 99), "client_timeout": st.integers(1, 99)}
commands: st.SearchStrategy[ev.Command] = st.one_of(
    st.builds(ev.Allocate, leases, leases, checksum=checksums, **v1),
    st.builds(ev.Store, keys, sizes, checksums, **base),
    st.builds(ev.Write, keys, sizes, sizes, checksums, **base),
    st.builds(ev.Load, keys, sizes, sizes, checksums, **base),
    st.builds(ev.VecWrite, keys, ranges, checksums, **base),
    st.builds(ev.VecRead, keys, ranges, checksums, **base),
    st.builds(ev.Send, keys, remotes[CapabilityKind.WRITE], sizes, sizes, **allowed, **base),
    st.builds(ev.Push, keys, remotes[CapabilityKind.WRITE], sizes, sizes | st.just(-1), sizes, **allowed, **base),
    st.builds(ev.Pull, keys, remotes[CapabilityKind.READ], sizes | st.just(-1), sizes, sizes, **allowed, **base),
    st.builds(ev.Deliver, keys, hosts, ports, sizes, sizes, **base),
    st.builds(ev.RemoteStore, keys, hosts, ports, sizes, **base),
    st.builds(ev.Rename, keys, **base),
    st.builds(ev.Split, keys, leases, leases, st.sampled_from(Reliability), checksum=checksums, **base),
    st.builds(ev.Merge, keys, keys, **base),
    st.builds(ev.AliasAllocate, keys, sizes, sizes, leases | st.just(0), **base),
    st.builds(ev.AliasProbe, keys, **base),
    st.builds(ev.AliasIncrement, keys, kinds, keys, **base),
    st.builds(ev.AliasDecrement, keys, kinds, keys, **base),
    st.builds(ev.AliasChange, keys, sizes, sizes, leases, keys, **base),
    st.builds(ev.GetDigests, keys, st.booleans(), **base),
    st.builds(ev.ValidateDigests, keys, st.booleans(), **base),
    st.builds(ev.Allocate, leases, leases | st.just(-1), st.sampled_from(Reliability),
              st.sampled_from(AllocationKind), rids, **v1),
    st.builds(ev.Allocate, leases, leases | st.just(0), st.sampled_from(Reliability), **v0),
    st.builds(ev.Store, keys, sizes, **base),
    st.builds(ev.Write, keys, sizes, sizes, **base),
    st.builds(ev.Load, keys, sizes, sizes, **base),
    st.builds(ev.Open, keys, **base),
    st.builds(ev.Probe, keys, **base),
    st.builds(ev.Increment, keys, kinds, **base),
    st.builds(ev.Decrement, keys, kinds, **base),
    st.builds(ev.Change, keys, leases, leases, st.sampled_from([None, *Reliability]), **base),
    st.builds(ev.Truncate, keys, sizes, **base),
    st.builds(ev.StatusInquire, rids, token, **v1),
    st.builds(ev.StatusInquire, password=token, **v0),
    st.builds(ev.StatusChange, rids, token, **v1),
    st.builds(ev.StatusResources, **base),
    st.builds(ev.StatusStatistics, **base),
    st.builds(ev.StatusVersion, **base),
)  # fmt: skip


@given(commands)
def test_every_command_survives_the_line(command: ev.Command) -> None:
    line = render_command(command)
    assert line.endswith(b"\n")
    assert parse_command(line[:-1]) == command


@given(st.binary(max_size=200) | st.from_regex(rb"[01] [1-3]?[0-9]( [-0-9A-Z#.]{0,21}){0,12}", fullmatch=True))
def test_no_line_raises(line: bytes) -> None:
    assert isinstance(parse_command(line.replace(b"\n", b" ")), ev.Command | ev.Malformed | ev.Unsupported)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("1 1 1 2 1 600 1000 10", ev.Allocate(1000, 600, rid="1", timeout=10)),
        ("0 1 2 1 600 1000 10", ev.Allocate(1000, 600, version=0, timeout=10)),
        ("1 1 1 2 1 600 1000", ev.Allocate(1000, 600, rid="1")),
        ("  1   1  1 2   1 600  1000   10   ", ev.Allocate(1000, 600, rid="1", timeout=10)),
        ("1 1 1 2 1 600 1000 10\r", ev.Allocate(1000, 600, rid="1", timeout=10)),
        ("7 1 1 2 1 600 1000 10", ev.Allocate(1000, 600, rid="1", timeout=10)),
        ("1 1 1 1 3 600 1000 10", ev.Allocate(1000, 600, Reliability.VOLATILE, AllocationKind.FIFO, "1", timeout=10)),
        (f"0 2 {L} 10 0.5", ev.Store(K, 10, version=0)),
        (f"1 8 {L} 5 7 10 11 12", ev.Load(K, 5, 7, timeout=10)),
        (f"1 9 {L} 40 3 0 0 0 10 ", ev.Probe(K, timeout=10)),
        (f"1 9 {L} 40 3 10", ev.Probe(K, timeout=10)),
        (f"0 9 {K.key} MANAGE 40 0 10485760 10800 2 5 ", ev.Probe(Key(K.key, "MANAGE"), version=0, timeout=5)),
        (f"0 9 {L} 42 1 10485760 10800 2 5 ", ev.Decrement(K, CapabilityKind.READ, version=0, timeout=5)),
        (f"1 9 {L} 41 2 10", ev.Increment(K, CapabilityKind.WRITE, timeout=10)),
        (f"1 9 {L} 43 3 2000 1200 -1 10", ev.Change(K, 2000, 1200, timeout=10)),
        (f"1 9 {L} 43 3 2000 1200 2 10", ev.Change(K, 2000, 1200, Reliability.STABLE, timeout=10)),
        (f"1 9 {L} 45 20 10", ev.Truncate(K, 20, timeout=10)),
        ("1 4 1 1 ibp 20", ev.StatusInquire("1", timeout=20)),
        ("1 4 3 1 ibp 20", ev.StatusInquire("3", timeout=20)),
        ("0 4 1 ibp 5", ev.StatusInquire(version=0, timeout=5)),
        ("0 4 1 ibp", ev.StatusInquire(version=0)),
        ("1 4 1 2 ibp 10", ev.StatusChange("1", timeout=10)),
        ("1 4 3 10", ev.StatusResources(timeout=10)),
        ("1 4 3 1", ev.StatusResources(timeout=1)),
        ("1 4 5 10", ev.StatusVersion(timeout=10)),
        ("1 4 4 1 10", ev.StatusStatistics(timeout=10)),
    ],
)  # fmt: skip
def test_lines_of_real_clients(line: str, command: ev.Command) -> None:
    assert parse_command(line.encode()) == command


@pytest.mark.parametrize(
    ("line", "code", "closes"),
    [
        ("", -21, True),
        ("hello world", -21, True),
        ("GET / HTTP/1.0", -21, True),
        ("1", -21, True),
        ("-1 1 1 2 1 600 1000 10", -27, True),
        ("1 \u0661", -21, True),
        ("1 1 1 7 1 600 1000 10", -21, False),
        ("1 1 1 2 9 600 1000 10", -30, False),
        ("1 1 1 2 1 0 1000 10", -30, False),
        ("1 1 1 2 1 -5 1000 10", -30, False),
        ("1 1 1 2 1 600 0 10", -30, False),
        ("1 1 1 2 1 600 -1 10", -30, False),
        ("1 1 1 2 1 600 99999999999999999999999999999 10", -21, False),
        ("1 1 1 2 1 600 9999999999999999999 10", -21, False),
        ("1 1 1 2 1 600 1_0 10", -21, False),
        ("1 1", -21, False),
        (f"1 2 {L} -1 10", -30, True),
        (f"1 2 {L} x 10", -21, True),
        (f"1 13 {L} -1 4 10", -30, True),
        (f"1 8 {L} -3 5 10", -30, False),
        (f"1 9 {L} 44 3 10", -21, False),
        (f"1 9 {L} 50 3 10", -21, False),
        (f"1 9 {L} 42 9 10", -30, False),
        (f"1 9 {L} 43 3 0 1200 2 10", -20, False),
        (f"1 9 {L} 43 3 2000 0 2 10", -30, False),
        ("1 8 a/b 1 0 5 10", -4, False),
        ("1 4", -21, False),
        ("1 4 9 7 1 1", -21, False),
    ],
)
def test_refusals(line: str, code: int, closes: bool) -> None:
    assert parse_command(line.encode()) == ev.Malformed(code, closes)


@pytest.mark.parametrize("opcode", [-1, 6, 10, 11, 12, 17, 22, 23, 25, 26, 37, 50, 90, 99, 101, 500])
def test_what_is_not_spoken_is_named(opcode: int) -> None:
    unsupported = parse_command(f"1 {opcode} 1 2 3 4 10".encode())
    assert unsupported == ev.Unsupported(opcode, closes_if_refused=False)


def test_the_opcode_table_is_complete() -> None:
    never = {-1, 6, 10, 11, 12, 17, 22, 23, 25, 26}
    assert {int(code) for code in Opcode} == set(_PARSERS) | never
    assert not set(_PARSERS) & never


@pytest.mark.parametrize("password", ["", "a b", "a\nb", "ä"])
def test_a_field_can_never_become_two_lines(password: str) -> None:
    with pytest.raises(LocalProtocolError):
        render_command(ev.StatusInquire(password=password))


def test_permanence_by_version() -> None:
    assert ev.Allocate(1, -1).permanent
    assert ev.Allocate(1, 0, version=0).permanent
    assert not ev.Allocate(1, -1, version=0).permanent
