"""Access control lists: the kernel's format, and the rules of POSIX.1e."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.errors import InvalidArgument
from ibpfs.exnode_store import acl
from ibpfs.exnode_store.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry

bits = st.integers(0, 7)
named = st.lists(st.tuples(st.integers(0, 1 << 31), bits), max_size=3)


@st.composite
def acls(draw: st.DrawFn) -> acl.Acl:
    users = [Entry(USER, mode, who) for who, mode in draw(named)]
    groups = [Entry(GROUP, mode, who) for who, mode in draw(named)]
    mask = [Entry(MASK, draw(bits))] if users or groups or draw(st.booleans()) else []
    ends = [Entry(USER_OBJ, draw(bits)), Entry(GROUP_OBJ, draw(bits)), Entry(OTHER, draw(bits))]
    return (ends[0], *users, ends[1], *groups, *mask, ends[2])


def group_bits(entries: acl.Acl) -> int:
    found = {entry.tag: entry.permissions for entry in entries}
    return found.get(MASK, found[GROUP_OBJ])


@given(acls())
def test_round_trip(entries: acl.Acl) -> None:
    assert acl.parse(acl.pack(entries)) == entries


def test_the_kernels_bytes() -> None:
    # What `setfacl -m u:1000:rw` gives a file of mode 0640.
    raw = bytes.fromhex(
        "02000000" "01000600ffffffff" "02000600e8030000" "04000400ffffffff" "10000600ffffffff" "20000000ffffffff"
    )
    entries = acl.parse(raw)
    assert entries == (
        Entry(USER_OBJ, 6),
        Entry(USER, 6, 1000),
        Entry(GROUP_OBJ, 4),
        Entry(MASK, 6),
        Entry(OTHER, 0),
    )
    assert acl.pack(entries) == raw
    assert acl.apply_to_mode(entries, 0o100640) == 0o100660


def test_an_empty_list_is_no_list() -> None:
    assert acl.parse(struct.pack("<I", 2)) == ()


@pytest.mark.parametrize(
    "entries",
    [
        (Entry(USER_OBJ, 7),),
        (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5)),
        (Entry(GROUP_OBJ, 7), Entry(USER_OBJ, 5), Entry(OTHER, 0)),
        (Entry(USER_OBJ, 7), Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 0)),
        (Entry(USER_OBJ, 7), Entry(USER, 7, 1), Entry(GROUP_OBJ, 5), Entry(OTHER, 0)),
        (Entry(USER_OBJ, 7), Entry(USER, 7), Entry(GROUP_OBJ, 5), Entry(MASK, 5), Entry(OTHER, 0)),
        (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(MASK, 5), Entry(MASK, 5), Entry(OTHER, 0)),
        (Entry(USER_OBJ, 8), Entry(GROUP_OBJ, 5), Entry(OTHER, 0)),
        (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 0), Entry(0x40, 0)),
    ],
)
def test_unsound_lists_are_refused(entries: acl.Acl) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(acl.pack(entries))


@pytest.mark.parametrize("raw", [b"", b"\2\0\0", b"\2\0\0\0\1", struct.pack("<I", 1)])
def test_bytes_that_are_no_list_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(raw)


@given(acls(), st.integers(0, 0o7777))
def test_setting_a_list_moves_the_mode(entries: acl.Acl, mode: int) -> None:
    after = acl.apply_to_mode(entries, mode)
    assert after >> 9 == mode >> 9
    assert (after >> 6 & 7, after >> 3 & 7, after & 7) == (
        entries[0].permissions,
        group_bits(entries),
        entries[-1].permissions,
    )


@given(acls(), st.integers(0, 0o7777))
def test_chmod_moves_the_list_and_keeps_the_named(entries: acl.Acl, mode: int) -> None:
    after = acl.change_mode(entries, mode)
    assert acl.apply_to_mode(after, mode) == mode
    assert [e for e in after if e.tag in (USER, GROUP)] == [e for e in entries if e.tag in (USER, GROUP)]
    if not acl.is_trivial(entries):
        assert [e for e in after if e.tag == GROUP_OBJ] == [e for e in entries if e.tag == GROUP_OBJ]


@given(acls(), st.integers(0, 0o777))
def test_inheritance_grants_no_more_than_the_list_or_the_mode(default: acl.Acl, mode: int) -> None:
    access, after = acl.inherit(default, mode)
    assert after & ~mode == 0
    assert after & ~acl.apply_to_mode(default, mode) == 0
    assert acl.apply_to_mode(access, mode) == after
    assert [(e.tag, e.id) for e in access] == [(e.tag, e.id) for e in default]
