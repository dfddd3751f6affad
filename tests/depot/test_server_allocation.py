"""The header survives torn writes, and says no more than it must."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.server.allocation import (
    HEADER_BYTES,
    PERMANENT,
    SLOT_BYTES,
    Allocation,
    key_digest,
    pack_header,
    pack_slot,
    slot_offset,
    unpack_header,
)
from ibpfs.depot.wire.protocol import AllocationKind, Reliability

digests = st.binary(min_size=32, max_size=32)
sizes = st.integers(0, 2**63 - 1)
allocations = st.builds(
    Allocation,
    id=st.binary(min_size=16, max_size=16),
    read_digest=digests,
    write_digest=digests,
    manage_digest=digests,
    reliability=st.sampled_from(Reliability),
    kind=st.sampled_from(AllocationKind),
    read_count=st.integers(0, 2**32 - 1),
    write_count=st.integers(0, 2**32 - 1),
    max_size=sizes,
    created=st.floats(0, 1e11),
    lease_end=st.floats(0, 1e11) | st.just(PERMANENT),
    size=sizes,
    read_only=st.booleans(),
    generation=st.integers(0, 2**63),
)


def state(allocation: Allocation | None) -> tuple[object, ...]:
    assert allocation is not None
    return tuple(getattr(allocation, name) for name in Allocation.__slots__)


@given(allocations)
def test_round_trip(allocation: Allocation) -> None:
    assert state(unpack_header(pack_header(allocation))) == state(allocation)
    assert len(pack_header(allocation)) == HEADER_BYTES


@given(allocations, st.integers(0, SLOT_BYTES), st.binary(min_size=SLOT_BYTES, max_size=SLOT_BYTES))
def test_a_torn_write_leaves_the_state_before_or_after_it(before: Allocation, torn: int, junk: bytes) -> None:
    header = bytearray(pack_header(before))
    after = unpack_header(bytes(header))
    assert after is not None
    after.generation += 1
    after.size = before.size // 2
    start = slot_offset(after.generation)
    for tail in (bytes(header[start + torn : start + SLOT_BYTES]), junk[torn:]):
        written = bytearray(header)
        written[start : start + SLOT_BYTES] = pack_slot(after)[:torn] + tail
        assert state(unpack_header(bytes(written))) in (state(before), state(after))


@given(st.binary(max_size=HEADER_BYTES))
def test_any_bytes_are_no_header(raw: bytes) -> None:
    assert unpack_header(raw) is None


@given(allocations)
def test_repr_tells_no_key(allocation: Allocation) -> None:
    assert allocation.manage_digest.hex() not in repr(allocation)
    assert allocation.label in repr(allocation)


def test_keys_are_filed_under_their_digest() -> None:
    assert key_digest("1#abc") == key_digest("1#abc") != key_digest("1#abd")
