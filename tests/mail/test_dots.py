"""What SMTP does to lines that begin with a dot, and back."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from ibpfs.mail.dots import END, Unstuffer, may_continue, stuffed

PIECES = st.lists(st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"a", b""]), max_size=6).map(b"".join))


@given(PIECES)
@example([b".", b"\r", b"\n", b".\r\n"])
@example([])
def test_there_and_back(pieces: list[bytes]) -> None:
    """However it was cut: the same lines; nothing inside can be taken for the end."""
    wire = b"".join(stuffed(pieces))
    whole = re.sub(rb"\r\n|\r|\n", b"\r\n", b"".join(pieces))
    whole += b"" if whole.endswith(b"\n") or not whole else b"\r\n"
    assert (b"\r\n" + wire).find(END) == len(wire) + 2 - len(END)
    for size in (1, 2, 3, 1000):
        unstuffer = Unstuffer()
        body = wire[: -len(END) + 2] if wire != b".\r\n" else b""
        plain = b"".join(unstuffer.feed(body[at : at + size]) for at in range(0, len(body), size))
        assert plain + unstuffer.finish() == whole


def test_what_the_end_may_begin_with() -> None:
    assert [may_continue(b"x" + END[:length]) for length in range(6)] == [False, True, True, True, True, False]
