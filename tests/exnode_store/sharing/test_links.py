"""Links: what was rendered is read, in any text, and whatever was mangled is told."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.sharing.links import BadLink, Fragment, Link, Locator, Place, decode, encode, find_links

from .shapes import links, locators

LINK = Link(
    Locator(b"0123456789", 1_800_000_000, (Place(Address("depot.example", 6714), Key("0#abcdefghijklmnop", "7")),)),
    Fragment(secret=bytes(range(32))),
)
WAYS = pytest.mark.parametrize("gateway", [None, "https://share.example", "http://127.0.0.1:8080/base/"])


@given(links, st.sampled_from([None, "https://share.example"]))
def test_read_back(link: Link, gateway: str | None) -> None:
    found = Link.parse(link.render(gateway))
    assert found == link
    assert (found.fragment.secret, found.fragment.wrapped) == (link.fragment.secret, link.fragment.wrapped)


@given(locators)
def test_locators(locator: Locator) -> None:
    assert Locator.parse(locator.render()) == locator


@given(st.binary(max_size=40))
def test_base64url(data: bytes) -> None:
    assert decode(encode(data)) == data


@given(links, st.data())
def test_cut_off(link: Link, data: st.DataObject) -> None:
    text = link.render()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(BadLink):
        Link.parse(cut)


@given(links, st.data())
def test_mangled(link: Link, data: st.DataObject) -> None:
    text = link.render()
    at = data.draw(st.integers(len("ibpfs:"), len(text) - 1))
    other = data.draw(st.sampled_from([letter for letter in "Aa0-_#%x" if letter != text[at]]))
    with pytest.raises(BadLink):
        Link.parse(text[:at] + other + text[at + 1 :])


@given(st.text(max_size=200))
def test_no_link(text: str) -> None:
    with pytest.raises(BadLink):
        Link.parse(text)
    with pytest.raises(BadLink):
        Link.parse(f"ibpfs:{text}")
    with pytest.raises(BadLink):
        Locator.parse(text)


def test_said_in_one_line_without_the_secret() -> None:
    text = LINK.render()
    for wrong, said in [
        (text.partition("#")[0], "cut off"),
        (text.partition("#")[0] + "#", "cut off"),
        (text[:-1], "cut off or mangled"),
        (text.swapcase(), "not a link"),
        ("https://share.example/other", "not a link"),
    ]:
        with pytest.raises(BadLink, match=said) as found:
            Link.parse(wrong)
        assert text.rpartition("#")[2][:20] not in str(found.value)


def test_repr_tells_nothing() -> None:
    shown = repr(LINK) + repr(LINK.fragment) + repr(LINK.locator)
    assert LINK.fragment.render(LINK.locator)[5:20] not in shown
    assert "abcdefghijklmnop" not in shown
    assert str(bytes(range(32))) not in shown


@WAYS
@pytest.mark.parametrize(
    "around", ["{}", "see <{}>.", "> quoted: {}\n", 'href="{}"', "({})", "one {} and\nmore", "<a href='{}'>x</a>"]
)
def test_found_in_text(gateway: str | None, around: str) -> None:
    text = LINK.render(gateway)
    assert [Link.parse(found) for found in find_links(around.format(text))] == [LINK]


@WAYS
def test_found_in_broken_lines(gateway: str | None) -> None:
    text = LINK.render(gateway)
    broken = "\n".join(text[at : at + 60] for at in range(0, len(text), 60))
    assert [Link.parse(found) for found in find_links(f"the file:\n<{broken}>\nyours")] == [LINK]


def test_found_where_a_mail_server_rewrote_it() -> None:
    rewritten = f"https://links.example/?url={quote(LINK.render('https://share.example'), safe='')}&data=1"
    assert [Link.parse(found) for found in find_links(rewritten)] == [LINK]


def test_each_once() -> None:
    text = LINK.render("https://share.example")
    assert len(list(find_links(f"{text}\n{text}\n{LINK.render()} {LINK.render('https://other.example')}"))) == 1


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    list(find_links(text))
