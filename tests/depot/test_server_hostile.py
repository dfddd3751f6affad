"""Bytes from a hostile or broken peer: a reply or a close, and the depot goes on."""

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

lines = st.lists(
    st.sampled_from(
        [b"0", b"1", b"-1", b"2", b"4", b"8", b"9", b"13", b"40", b"43", b"45", b"600", b"1#k", b"x", b"", b"ibp"]
    ),
    max_size=9,
).map(lambda fields: b" ".join(fields) + b"\n")


@given(st.lists(lines | st.binary(max_size=300), max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_bytes_get_a_reply_or_a_close(shared_depot: Any, chunks: list[bytes]) -> None:
    hostile = shared_depot.connect()
    replies = b""
    with suppress(ConnectionError):  # sent away already
        for chunk in chunks:
            hostile.send(chunk)
        hostile.sock.shutdown(1)
        replies = hostile.rest()
    assert not replies or replies.endswith(b"\n")
    hostile.close()


def test_a_truncated_conversation_at_every_byte(shared_depot: Any) -> None:
    client = shared_depot.connect()
    read, write, manage = client.allocate(size=1 << 20)
    conversation = (
        f"1 2 {write} 1 10 10\n0123456789"
        f"0 9 {manage} MANAGE 43 0 1048576 600 -1 10\n"
        f"1 13 {write} 1 3 4 10\nabcd"
        f"1 8 {read} 1 0 10 10\n0 4 1 ibp 10\n1 4 5 10\n"
    ).encode()
    for end in range(len(conversation)):
        hostile = shared_depot.connect()
        hostile.send(conversation[:end])
        hostile.sock.shutdown(1)
        hostile.rest()
        hostile.close()
    size = client.probe(manage)[2]
    assert size % 10 == 0
    assert client.load(read, size - 10, 10) in (b"0123456789", b"012abcd789")
    client.close()
