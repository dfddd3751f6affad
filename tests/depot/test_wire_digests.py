"""Digests between the bytes of a stream: any data, any blocks, any chunks; and on disk, beside a model."""

import hashlib
import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.server import digests
from ibpfs.depot.server.allocation import HEADER_BYTES
from ibpfs.depot.wire.digests import Checksum, Deframer, DigestType, Framer

checksums = st.builds(Checksum, st.sampled_from(DigestType), st.integers(1, 70))
cuts = st.lists(st.integers(0, 2000), max_size=10)


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    ends = [*sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(checksums, st.binary(max_size=300), cuts, cuts)
def test_framed_and_back(checksum: Checksum, data: bytes, cuts_in: list[int], cuts_out: list[int]) -> None:
    framer = Framer(checksum)
    framed = b"".join(framer.feed(piece) for piece in pieces(data, cuts_in)) + framer.finish()
    assert len(framed) == checksum.framed_length(len(data))
    deframer = Deframer(checksum, len(data))
    assert b"".join(deframer.feed(piece) for piece in pieces(framed, cuts_out)) == data
    assert not deframer.damaged


@given(checksums, st.binary(min_size=1, max_size=300), st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_noticed(checksum: Checksum, data: bytes, at: int, change: int) -> None:
    framer = Framer(checksum)
    framed = bytearray(framer.feed(data) + framer.finish())
    at %= len(framed)
    framed[at] ^= change
    deframer = Deframer(checksum, len(data))
    changed = deframer.feed(bytes(framed))
    only_case = changed == data and change == 0x20  # digests may come in upper case
    assert deframer.damaged or only_case


writes = st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=90)), min_size=1, max_size=8)


@given(checksums, writes)
def test_on_disk_after_any_writes(checksum: Checksum, written: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as kept:
        size, model = 0, b""
        for offset, data in written:
            stale = digests.touched(checksum, size, [(offset, len(data))])
            os.pwrite(file.fileno(), data, HEADER_BYTES + offset)
            size = max(size, offset + len(data))
            model = model.ljust(size, b"\0")
            model = model[:offset] + data + model[offset + len(data) :]
            digests.refresh(file.fileno(), kept.fileno(), checksum, stale, size)
        blocks = checksum.blocks(size)
        found = digests.read_digests(kept.fileno(), checksum, 0, blocks, digests.zero_digest(checksum))
        block = checksum.block_size
        name = checksum.type.name.lower()
        assert found == b"".join(hashlib.new(name, model[at : at + block]).digest() for at in range(0, size, block))
        bad = digests.count_bad(file.fileno(), kept.fileno(), checksum, size, correct=False, check=lambda: None)
        assert bad == 0
        os.pwrite(file.fileno(), bytes([model[-1] ^ 1]), HEADER_BYTES + size - 1)
        for expected in (1, 0):
            assert expected == digests.count_bad(
                file.fileno(), kept.fileno(), checksum, size, correct=True, check=lambda: None
            )
