"""Whatever comes in: nothing is lost, nothing is raised that is not expected."""

import email
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ibpfs.exnode_store.sharing.links import Link
from ibpfs.mail.checking import RewritingFailed, check
from ibpfs.mail.links import links_in
from ibpfs.mail.planning import Rules, make_plan
from ibpfs.mail.rewriting import rewrite
from ibpfs.mail.structure import scan

from .letters import CORPUS, RULES, leaves, link, rewritten, shared

LETTERS = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
LINES = st.sampled_from(
    [b"--sep1\n", b"--sep1--\n", b"--in\n", b"\n", b"\r", b"\r\n", b" \n", b"--x\n", b"=\n", b"====\n", b"\0",
      b"\xff\n", b"Content-Type: multipart/mixed; boundary=x\n", b"Content-Transfer-Encoding: base64\n",
     b"Content-Type: text/plain\n"]
)  # fmt: skip


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A message of the corpus in which some lines are gone, doubled, in other places, or others."""
    lines = draw(st.sampled_from(LETTERS)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "put", "move", "cut", "flip"])):
            case "drop":
                del lines[place]
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[place])
            case "put":
                lines.insert(place, draw(LINES))
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(place))
            case "cut":
                lines[place:] = [lines[place][: draw(st.integers(0, len(lines[place])))]]
            case "flip":
                flipped = bytearray(lines[place])
                flipped[draw(st.integers(0, len(flipped) - 1))] ^= 1 << draw(st.integers(0, 7))
                lines[place] = bytes(flipped)
        lines = [line for line in lines if line] or [b"\n"]
    return b"".join(lines)


@given(mangled())
@example(b"")
@example(b"\n")
@example(b"Content-Type: multipart/mixed; boundary=\n\n--\n\n----\n")
def test_mangled_messages_lose_nothing(data: bytes) -> None:
    try:
        result, plan = rewritten(data)
    except RewritingFailed:  # parsers disagree about it: then the original is sent
        return
    stayed = [part for part in plan.root.leaves() if part.start not in {one.part.start for one in plan.attachments}]
    place = 0
    for part in stayed if not (plan.attachments and not plan.attachments[0].boundary) else ():
        place = result.index(data[part.start : part.stop], place) + part.stop - part.start
    assert len(links_in(result)) >= len(plan.attachments)


@given(st.binary(max_size=3000))
def test_anything_at_all(data: bytes) -> None:
    root = scan(data)
    assert (root.start, root.stop) == (0, len(data))
    assert make_plan(data, root, Rules(threshold=0)).root is root
    links_in(data)


FILES = st.tuples(
    st.text(min_size=1, max_size=30).map(lambda text: "".join(sign for sign in text if sign.isprintable()) or "x"),
    st.binary(min_size=1, max_size=40).flatmap(lambda data: st.sampled_from([data, data * 2500])),
)


def composed(text: str, encoding: str, page: bool, files: list[tuple[str, bytes]], end: str) -> bytes:
    """A message as Python composes it."""
    message = EmailMessage()
    message["From"], message["To"] = "ada@example.org", "ben@example.net"
    message.set_content(text, cte=encoding)
    if page:
        message.add_alternative("<p>Grüße</p>", subtype="html")
    for name, data in files:
        message.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes(policy=message.policy.clone(linesep=end))


@given(
    st.text("abc äß=\n", max_size=200), st.sampled_from(["base64", "quoted-printable"]), st.booleans(),
    st.lists(FILES, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_composed_messages(text: str, encoding: str, page: bool, files: list[tuple[str, bytes]], end: str) -> None:
    data = composed(text, encoding, page, files, end)
    large = [content for _, content in files if len(content) > RULES.threshold]
    result, plan = rewritten(data)
    assert [b"".join(one.read(data)) for one in plan.attachments] == large
    assert [Link.parse(text) for text in links_in(result)] == [link(number) for number in range(len(large))]
    assert rewritten(result)[0] == result  # not once more


def test_the_whole_message_of_a_signed_one() -> None:
    """With `wrap` its signature stays good in the file; who got a blind copy is in neither."""
    data = (CORPUS / "signed-smime.eml").read_bytes().replace(b"To:", b"Bcc: eve@example.org,\r\n\tx@y.z\r\nTo:", 1)
    result, plan = rewritten(data, Rules(threshold=2000, wrap=True))
    (whole,) = plan.attachments
    assert whole.name == "signed.eml"
    assert b"".join(whole.read(data)) == data.replace(b"Bcc: eve@example.org,\r\n\tx@y.z\r\n", b"")
    kept, new = email.message_from_bytes(data), email.message_from_bytes(result)
    assert new.get_content_type() == "multipart/mixed"
    assert [leaf.get_content_type() for leaf in leaves(result)] == ["text/plain", "message/external-body"]
    for name in ("From", "To", "Bcc", "Subject", "Date", "Message-ID"):
        assert new[name] == kept[name]


def test_a_dkim_signature_does_not_stay_around_a_new_body() -> None:
    result, _ = rewritten((CORPUS / "dkim.eml").read_bytes(), Rules(threshold=2000, wrap=True))
    assert b"DKIM-Signature" not in result


def test_a_result_that_lost_something_is_not_used() -> None:
    data = (CORPUS / "same-name-twice.eml").read_bytes()
    plan = make_plan(data, scan(data), Rules(threshold=2000))
    result = rewrite(data, plan, [shared(one, number) for number, one in enumerate(plan.attachments)])
    check(data, plan, result)
    damages = {
        b"Good day": b"Bad day", b"small.txt": b"x.txt", b"Subject: twice": b"Subject: once", b"--sep1--": b"--sep1",
        b"message/external-body": b"text/plain",
    }  # fmt: skip
    for before, after in damages.items():
        wrong = result.replace(before, after)
        assert wrong != result
        with pytest.raises(RewritingFailed):
            check(data, plan, wrong)
