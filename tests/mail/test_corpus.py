"""Structures of real messages through the rewriter: nothing lost, and readable by two parsers that are not ours."""

import base64
import email
import shutil
import subprocess
from pathlib import Path

import pytest

from ibpfs.exnode_store.sharing.links import Link
from ibpfs.mail.links import links_in

from .letters import CORPUS, EXPIRES, leaves, link, rewritten

#: What becomes a link, by message; the name of a file in the message otherwise tells why it stays.
LINKS = {
    "already-a-link": ["plan.pdf"],
    "attachment": ["plan.pdf"],
    "big-inline-picture": ["raw.tiff"],
    "binary-file": ["raw.bin"],
    "blind-copies": ["plan.pdf"],
    "broken-base64": ["good.zip"],
    "calendar": ["agenda.pdf"],
    "continued-name": ["書類 (final).pdf"],
    "deep": ["deep.pdf"],
    "empty-parts": ["plan.pdf"],
    "file-between-html": ["Brief.pdf"],
    "flowed-preamble-epilogue": ["plan.pdf"],
    "forwarded": ["Die Zählung.eml"],
    "forwarded-base64": ["old.eml"],
    "hostile-names": ["passwd", "attachment.zip", "abfdp.exe", "x" * 196 + ".pdf", "doc.docx"],
    "huge-headers": ["plan.pdf"],
    "inline-patch-8bit": ["0001-change.patch"],
    "latin1-name": ["Prüfung.pdf"],
    "mbox-line": ["plan.pdf"],
    "only-a-file": ["scan.pdf"],
    "parallel": ["a.mp3", "b.mp4"],
    "quoted-printable-file": ["werte.csv"],
    "raw-8bit": ["Отчёт.pdf"],
    "related-in-mixed-crlf": ["Übersicht.xlsx"],
    "same-name-twice": ["same.pdf", "same.pdf"],
    "seven-bit-file": ["run.log"],
    "signed-in-list-mail": ["outside.zip"],
    "similar-boundaries": ["deep.pdf", "outer.zip"],
    "trailing-blanks": ["plan.pdf"],
    "two-content-types": ["good.zip"],
    "unknown-charset": ["aÿb.pdf"],
}
#: What is said of those that stay although they are large; messages that are not here have nothing to say.
KEPT = {
    "already-a-link": "message/external-body",
    "appledouble": "one file in two parts",
    "bare-return": "a bare carriage return",
    "base64-with-footer": "'plan.pdf' is not encoded as it says",
    "base64-without-padding": "'plan.pdf' is not encoded as it says",
    "big-inline-picture": "'photo.png' is shown in the text",
    "boundary-never-comes": "without its boundary",
    "broken-base64": "'plan.pdf' is not encoded as it says",
    "calendar": "'invite.ics' is text/calendar",
    "dkim": "the message has a DKIM signature",
    "encoded-multipart": "an encoded multipart",
    "encrypted-pgp": "the message is encrypted",
    "folded-oddly": "without its boundary",
    "no-boundary-parameter": "without a boundary",
    "no-end": "without an end",
    "no-separator": "a line that is no field",
    "opaque-smime": "signed or encrypted (S/MIME)",
    "report": "is a report",
    "signed-in-list-mail": "is signed",
    "signed-pgp": "the message is signed",
    "signed-smime": "the message is signed",
    "two-content-types": "says two things",
    "uuencoded": "a transfer encoding that is not known",
    "winmail": "application/ms-tnef",
}
NAMES = sorted(path.stem for path in CORPUS.iterdir())


@pytest.fixture(params=NAMES)
def letter(request: pytest.FixtureRequest) -> Path:
    return CORPUS / f"{request.param}.eml"


def test_what_becomes_a_link_and_what_is_said_of_the_rest(letter: Path) -> None:
    data = letter.read_bytes()
    result, plan = rewritten(data)
    assert [one.name for one in plan.attachments] == LINKS.get(letter.stem, [])
    said = "; ".join(plan.kept)
    assert (KEPT[letter.stem] in said) if letter.stem in KEPT else not said
    if letter.stem not in LINKS:
        assert result == data


def test_files_are_what_other_readers_take_from_the_message(letter: Path) -> None:
    data = letter.read_bytes()
    _, plan = rewritten(data)
    for one in plan.attachments:
        content = b"".join(one.read(data))
        assert len(content) == one.size
        alone = email.message_from_bytes(data[one.part.start : one.part.stop])
        expected = alone.get_payload(decode=True)
        if expected is None:  # a message in the message, which Python takes apart
            inside = data[one.part.body : one.part.stop]
            expected = base64.b64decode(inside) if one.encoding == "base64" else inside
        assert isinstance(expected, bytes)
        text = one.encoding in ("7bit", "8bit", "quoted-printable")
        assert content == (expected.replace(b"\r\n", b"\n") if text else expected)


def test_nothing_else_changes(letter: Path) -> None:
    """Python's parser sees all leaves of the original, in order, but for the files, whose place links have taken."""
    data = letter.read_bytes()
    result, plan = rewritten(data)
    files = [data[one.part.start : one.part.stop] for one in plan.attachments]
    gone = [leaf.get_payload(decode=True) or leaf.as_bytes() for leaf in map(email.message_from_bytes, files)]
    before = [leaf.get_payload(decode=True) or leaf.as_bytes() for leaf in leaves(data)]
    after = [leaf.get_payload(decode=True) or leaf.as_bytes() for leaf in leaves(result)]
    for payload in gone:
        before.remove(payload)
    assert [payload for payload in after if payload in before] == before
    kinds = [leaf.get_content_type() for leaf in leaves(result)]
    assert kinds.count("message/external-body") == len(files) + (letter.stem == "already-a-link")
    top = email.message_from_bytes(data).items(), email.message_from_bytes(result).items()
    if letter.stem != "only-a-file":
        assert top[0] == top[1]


def test_lines_end_as_they_did(letter: Path) -> None:
    data = letter.read_bytes()
    result, plan = rewritten(data)
    if plan.attachments and letter.stem != "binary-file":
        assert (result.count(b"\r\n") == result.count(b"\n")) == (data.count(b"\r\n") == data.count(b"\n"))
        assert max(map(len, result.splitlines())) <= max(998, *map(len, data.splitlines()))


def test_links_are_found_again(letter: Path) -> None:
    result, plan = rewritten(letter.read_bytes())
    found = [Link.parse(text) for text in links_in(result)]
    assert found == [link(number) for number in range(len(plan.attachments))]


def test_programs_are_told_what_is_elsewhere() -> None:
    result, _ = rewritten((CORPUS / "continued-name.eml").read_bytes())
    part = leaves(result)[-1]
    assert part.get_param("access-type") == "URL"
    assert "".join(str(part.get_param("url")).split()) == link(0).render("https://gate.example")
    assert part.get_param("size") == "4500"
    assert email.utils.parsedate_to_datetime(str(part.get_param("expiration"))).timestamp() == EXPIRES
    assert part["X-IBPFS-Share"] == link(0).locator.id
    inner = part.get_payload(0)
    assert isinstance(inner, email.message.Message)
    assert inner.get_content_type() == "application/pdf"
    assert inner.get_filename() == "書類 (final).pdf"
    assert inner["Content-ID"].startswith(f"<{link(0).locator.id}.")


def test_people_are_told_what_it_is_until_when_and_how() -> None:
    result, _ = rewritten((CORPUS / "related-in-mixed-crlf.eml").read_bytes())
    plain, page = (
        leaf.get_payload(decode=True) for leaf in leaves(result) if leaf["Content-Disposition"] == "inline"
    )  # fmt: skip
    assert isinstance(plain, bytes)
    assert isinstance(page, bytes)
    for text in (plain.decode(), page.decode()):
        assert "Übersicht.xlsx" in text
        assert "4.4 KiB" in text
        assert "20 December 2026" in text
        assert "ibpfs get -" in text
        assert link(0).render() in text
        assert link(0).render("https://gate.example") in text


# --- the other parser: reformime, of Courier


def sections(data: bytes) -> list[tuple[str, str]]:
    """Number and type of every part, as reformime sees them."""
    out = reformime(data, "-i").decode("utf-8", "replace")
    found = []
    for block in out.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "section" in fields:
            found.append((fields["section"], fields.get("content-type", "")))
    return found


def reformime(data: bytes, *words: str) -> bytes:
    done = subprocess.run(["reformime", *words], input=data, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def decoded(data: bytes) -> list[bytes]:
    kinds = sections(data)
    whole = {name.rpartition(".")[0] for name, _ in kinds}
    return [reformime(data, "-s", name, "-e") for name, _ in kinds if name not in whole]


@pytest.mark.parametrize("name", sorted(LINKS))
def test_another_parser_sees_the_same(name: str) -> None:
    if shutil.which("reformime") is None:
        pytest.skip("no reformime (package maildrop)")
    data = (CORPUS / f"{name}.eml").read_bytes()
    result, plan = rewritten(data)
    assert [kind for _, kind in sections(result)].count("message/external-body") >= len(plan.attachments)
    before, after = decoded(data), decoded(result)
    files = {b"".join(one.read(data)).replace(b"\r", b"") for one in plan.attachments}
    stayed = [one for one in before if one.replace(b"\r", b"").rstrip(b"\n") not in {f.rstrip(b"\n") for f in files}]
    if not name.startswith("forwarded"):  # whose insides reformime looks into
        assert len(before) - len(stayed) == len(plan.attachments)
        assert [one for one in after if one in stayed] == stayed
