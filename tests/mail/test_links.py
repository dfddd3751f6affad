"""Links in what a mail program pipes."""

import json

import pytest

from ibpfs.exnode_store.sharing.links import Link
from ibpfs.mail.links import links_in

from .letters import CORPUS as LETTERS
from .letters import GATEWAY, link, rewritten

ONE, TWO = link(1), link(2)
HEAD = "From: a@example.org\nTo: b@example.org\nMIME-Version: 1.0\n"


def found(text: str | bytes) -> list[Link]:
    data = text if isinstance(text, bytes) else text.encode()
    return [Link.parse(one) for one in links_in(data)]


def test_no_message_at_all() -> None:
    assert found(f"{ONE.render()}\n") == [ONE]
    assert found(f"look: <{ONE.render(GATEWAY)}> or {TWO.render()}, both") == [ONE, TWO]
    assert found("nothing here") == []
    assert found(b"\xff\xfe\0") == []


def test_the_same_link_in_both_forms_is_one() -> None:
    assert found(f"{ONE.render()} {ONE.render(GATEWAY)}") == [ONE]


def test_in_html() -> None:
    page = f'<a href="{ONE.render(GATEWAY)}">x</a> <code>{TWO.render()}</code>'
    text = f"{HEAD}Content-Type: text/html; charset=utf-8\n\n{page}\n"
    assert found(text) == [ONE, TWO]


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_encoded(encoding: str) -> None:
    from email.message import EmailMessage

    message = EmailMessage()
    message.set_content(f"here: {ONE.render()}\n", cte=encoding)
    assert found(message.as_bytes()) == [ONE]


@pytest.mark.parametrize("kind", ["application/vnd.ibpfs.link+json", "application/octet-stream"])
def test_a_link_file_among_the_attachments(kind: str) -> None:
    text = json.dumps({"format": "ibpfs-link/1", "link": ONE.render()})
    assert found(f"{HEAD}Content-Type: {kind}\n\n{text}\n") == [ONE]


def test_in_a_forwarded_message_and_in_what_a_mail_program_made_of_it() -> None:
    result, _ = rewritten((LETTERS / "attachment.eml").read_bytes())
    forwarded = f"{HEAD}Content-Type: multipart/mixed; boundary=fw\n\n--fw\nContent-Type: message/rfc822\n\n"
    assert found(forwarded.encode() + result + b"\n--fw--\n") == [link(0)]
    assert found(b"".join(b"> " + line for line in result.splitlines(keepends=True))) == [link(0)]


def test_charsets_that_nobody_knows() -> None:
    assert found(f"{HEAD}Content-Type: text/plain; charset=x-martian\n\n{ONE.render()}\n") == [ONE]
    assert found(f"{HEAD}Content-Type: text/plain; charset=\n\n{ONE.render()}\n") == [ONE]
