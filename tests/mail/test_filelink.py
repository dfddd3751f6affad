"""What the Thunderbird add-on may ask, and what happens when it asks for nonsense."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.mail.filelink import FileLink

from .letters import EXPIRES, GATEWAY, link
from .receivers import Links

REQUESTS = st.dictionaries(
    st.sampled_from(["op", "upload", "name", "size", "data", "id"]),
    st.sampled_from(["hello", "begin", "data", "end", "abort", "revoke", "", "../x", "QUJD", 0, 1, 2, 3, -1, 2**70])
    | st.booleans() | st.none() | st.lists(st.none(), max_size=1),
)  # fmt: skip


def conversation(links: Links | None = None) -> tuple[FileLink, Links]:
    links = links or Links()
    return FileLink(links, lambda: "home on /mnt"), links


def piece(data: bytes, number: int = 1) -> dict[str, Any]:
    return {"op": "data", "upload": number, "data": base64.b64encode(data).decode()}


def begin(size: int, name: str = "a.bin", number: int = 1) -> dict[str, Any]:
    return {"op": "begin", "upload": number, "name": name, "size": size}


def test_a_file_in_pieces() -> None:
    talk, links = conversation()
    assert talk.answer({"op": "hello"})["volume"] == "home on /mnt"
    assert talk.answer(begin(6, "../Übung.pdf")) == {"op": "ready", "received": 0, "upload": 1}
    assert talk.answer(piece(b"abc"))["received"] == 3
    assert talk.answer(piece(b"def"))["received"] == 6
    found = talk.answer({"op": "end", "upload": 1})
    assert found == {
        "op": "shared", "upload": 1, "id": link(0).locator.id, "url": link(0).render(GATEWAY), "name": "Übung.pdf",
        "size": 6, "expires": EXPIRES,
    }  # fmt: skip
    assert links.files == [("Übung.pdf", b"abcdef")]
    assert talk.answer({"op": "revoke", "id": found["id"]})["op"] == "revoked"
    assert links.revoked == [found["id"]]


def test_an_empty_file_and_two_at_a_time() -> None:
    talk, links = conversation()
    for number in (1, 2):
        talk.answer(begin(number - 1, f"{number}", number))
    talk.answer(piece(b"x", 2))
    for number in (1, 2):
        assert talk.answer({"op": "end", "upload": number})["op"] == "shared"
    assert links.files == [("1", b""), ("2", b"x")]


@pytest.mark.parametrize(
    "requests",
    [
        [{}], [{"op": "x"}], [{"op": "end", "upload": 1}], [piece(b"x")], [begin(1), begin(1)], [begin(-1)],
        [begin(2**50)], [begin(True)], [{"op": "begin", "upload": 1, "name": "x"}], [begin(2), piece(b"abc")],
        [begin(2), piece(b"a"), {"op": "end", "upload": 1}], [begin(2), {"op": "data", "upload": 1, "data": "*"}],
        [begin(1, number=number) for number in range(17)], [{"op": "abort", "upload": "1"}], [{"op": "revoke"}],
    ],
)  # fmt: skip
def test_nonsense_is_one_line_and_ends_that_upload_alone(requests: list[dict[str, Any]]) -> None:
    talk, links = conversation()
    talk.answer(begin(1, number=99))
    *_, last = [talk.answer(request) for request in requests]
    assert last["op"] == "error"
    assert len(last["error"].splitlines()) == 1
    assert talk.answer(piece(b"x", 99))["received"] == 1
    assert not links.files
    talk.close()


def test_no_volume() -> None:
    talk, _ = conversation(Links(fails_at=0))
    talk.answer(begin(1))
    talk.answer(piece(b"x"))
    assert talk.answer({"op": "end", "upload": 1})["error"] == "no volume is mounted"
    assert talk.answer(begin(1))["op"] == "ready"
    talk.close()


@given(st.lists(REQUESTS, max_size=8))
def test_anything(requests: list[dict[str, Any]]) -> None:
    talk, _ = conversation()
    for request in requests:
        json.dumps(talk.answer(request))
    talk.close()
