"""Entries of a record log: opened by their key alone, and nobody else's are taken."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.address import Address
from ibpfs.errors import DataError, WrongKey
from ibpfs.exnode_store.sharing.record_log import (
    HEADER,
    RECORD,
    REVOKED,
    BadRecord,
    Public,
    make_entry,
    make_revocation,
    parse_entry,
    parse_header,
    public_bytes,
)
from ibpfs.exnode_store.sharing.share_keys import Stretching

from .shapes import addresses

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = bytes(32)
PUBLIC = Public(public_bytes(SIGNER), 1, 2, (Address("depot.example", 6714),))
ENTRY = make_entry(SIGNER, 3, PUBLIC, b"the sealed part", KEY, bytes(12))


@given(st.lists(addresses, min_size=1, max_size=3).map(tuple), st.booleans(), st.integers(0, 2**33))
def test_public(depots: tuple[Address, ...], stretched: bool, expires: int) -> None:
    way = Stretching.make(bytes(16), for_browsers=True) if stretched else None
    public = Public(public_bytes(SIGNER), 7, expires, depots, way)
    assert Public.from_json(public.to_json()) == public
    pinned = replace(public, pins={one: bytes(range(32)) for one in depots[1:] if one.secure})
    assert Public.from_json(pinned.to_json()) == pinned


@pytest.mark.parametrize(
    "pins", [5, [], [None], ["AA", None], [None, "A" * 43], ["A" * 43, None, None], [7, None], "ab", {}]
)
def test_pins_that_make_no_sense(pins: object) -> None:
    """Of two depots, the second of which is spoken to without TLS."""
    depots = Address("depot.example", 6714, secure=True), Address("other.example", 6714)
    row = json.loads(replace(PUBLIC, depots=depots, pins={depots[0]: bytes(32)}).to_json())
    assert row["pins"] == ["A" * 43, None]
    with pytest.raises(BadRecord):
        Public.from_json(json.dumps(row | {"pins": pins}).encode())


@given(st.binary(max_size=100), st.integers(0, 2**32 - 1), st.binary(max_size=10))
def test_read_back(clear: bytes, number: int, behind: bytes) -> None:
    raw = make_entry(SIGNER, number, PUBLIC, clear, KEY, bytes(12))
    entry = parse_entry(raw + behind, PUBLIC.share)
    assert (entry.kind, entry.number, entry.public, entry.raw) == (RECORD, number, PUBLIC, raw)
    assert entry.open(KEY) == clear
    with pytest.raises(WrongKey):
        entry.open(bytes([1]) * 32)


@given(st.integers(0, len(ENTRY) * 8 - 1))
def test_bit_flips(at: int) -> None:
    changed = bytearray(ENTRY)
    changed[at // 8] ^= 1 << at % 8
    with pytest.raises(DataError):
        parse_entry(bytes(changed), PUBLIC.share)


@given(st.integers(0, len(ENTRY) - 1))
def test_cut_short(length: int) -> None:
    with pytest.raises(BadRecord):
        parse_entry(ENTRY[:length], PUBLIC.share)


def test_somebody_elses() -> None:
    with pytest.raises(BadRecord, match="another share"):
        parse_entry(ENTRY, bytes(10))
    forger = Ed25519PrivateKey.generate()
    forged = make_entry(forger, 3, PUBLIC, b"other", KEY, bytes(12))
    with pytest.raises(BadRecord, match="changed by somebody else"):
        parse_entry(forged, PUBLIC.share)


def test_revoked() -> None:
    entry = parse_entry(make_revocation(SIGNER, 4, PUBLIC), PUBLIC.share)
    assert (entry.kind, entry.number, entry.sealed) == (REVOKED, 4, b"")


@given(st.binary(max_size=64))
def test_any_header(data: bytes) -> None:
    with pytest.raises(BadRecord):
        parse_header(data)


def test_sizes_have_limits() -> None:
    head = HEADER.pack(b"IBPr", 1, RECORD, 0, 1, 1 << 30, 0)
    with pytest.raises(BadRecord, match="larger"):
        parse_header(head)
    head = HEADER.pack(b"IBPr", 1, RECORD, 0, 1, 10, 1 << 31)
    with pytest.raises(BadRecord, match="larger"):
        parse_header(head)


@pytest.mark.parametrize("change", [
    (b'"depots":["ibp://depot.example:6714"]', b'"depots":[]'),
    (b'"depots":["ibp://depot.example:6714"]', b'"depots":["unix:/run/socket"]'),
    (b'"depots":["ibp://depot.example:6714"]', b'"depots":["http://depot.example"]'),
    (b'"expires":2', b'"expires":-1'), (b'"expires":2', b'"expires":1e400'), (b'"expires":2', b'"expires":null'),
    (b"ibpfs-share/1", b"ibpfs-share/9"), (b'"passphrase":null', b'"passphrase":{}'), (b"{", b"["), (b'"key"', b'"k"'),
])  # fmt: skip
def test_public_that_makes_no_sense(change: tuple[bytes, bytes]) -> None:
    text = PUBLIC.to_json()
    assert change[0] in text
    with pytest.raises(BadRecord):
        Public.from_json(text.replace(*change))


def test_nested_too_deep() -> None:
    with pytest.raises(BadRecord):
        Public.from_json(b"[" * 60_000)


def test_bound_to_its_public_part() -> None:
    other = make_entry(SIGNER, 3, replace(PUBLIC, expires=9), b"x", KEY, bytes(12))
    entry = parse_entry(other, PUBLIC.share)
    with pytest.raises(WrongKey):
        replace(entry, raw=ENTRY, sealed=entry.sealed).open(KEY)
