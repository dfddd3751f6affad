"""Four bytes and JSON: whole, in pieces, and hostile."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.mail.native_messages import LONGEST, BadMessage, Reader, frame

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=4)


@given(MESSAGES, st.integers(1, 9))
def test_there_and_back_however_it_was_cut(messages: list[dict[str, object]], size: int) -> None:
    wire = b"".join(map(frame, messages))
    reader = Reader()
    found = [one for at in range(0, len(wire), size) for one in reader.feed(wire[at : at + size])]
    assert found == messages
    assert reader.is_between


def raw(body: bytes, length: int | None = None) -> bytes:
    return struct.pack("=I", len(body) if length is None else length) + body


@pytest.mark.parametrize(
    "wire",
    [
        raw(b"", LONGEST + 1), raw(b"{}", 0xFFFFFFFF), raw(b""), raw(b"{"), raw(b"[1]"), raw(b'"x"'), raw(b"\xff\xfe"),
        raw(b"[" * 200_000), raw(b'{"op":' * 1000), raw(b"1" * 10_000), raw(b"{}\0"),
    ],
)  # fmt: skip
def test_what_is_no_message(wire: bytes) -> None:
    with pytest.raises(BadMessage):
        list(Reader().feed(wire))


def test_a_length_alone_takes_no_memory() -> None:
    reader = Reader()
    assert list(reader.feed(struct.pack("=I", LONGEST))) == []
    assert not reader.is_between


@given(st.binary(max_size=64))
def test_anything(wire: bytes) -> None:
    try:
        for message in Reader().feed(wire):
            json.dumps(message)
    except BadMessage:
        pass
