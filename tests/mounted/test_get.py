"""`ibpfs get`: what it takes for a link, and where it puts what it fetched."""

import email.message
import json
import os
import subprocess
from pathlib import Path

import pyrage
import pytest

from .running import BIN, run
from .sharing import DATA, get, refusal, share
from .volumes import Volume

pytestmark = pytest.mark.mounted


def test_nothing_is_overwritten(two: Volume, directory: Path) -> None:
    (two / "f").write_bytes(DATA)
    link = share(two / "f")["link"]
    (directory / "f").write_bytes(b"mine")
    (directory / "elsewhere").write_bytes(b"mine, too")
    assert "exists already" in refusal(directory, link)
    (directory / "f").unlink()
    (directory / "f").symlink_to("elsewhere")
    assert "exists already" in refusal(directory, link)
    (directory / "f").unlink()
    (directory / "f").symlink_to("nowhere")
    assert "exists already" in refusal(directory, link)
    get(directory, link, "--force")
    assert (directory / "f").read_bytes() == DATA
    assert not (directory / "nowhere").exists()
    assert (directory / "elsewhere").read_bytes() == b"mine, too"
    get(directory, link, "-o", "other name")
    assert (directory / "other name").read_bytes() == DATA
    hidden = share(two / "f", "--name", ".profile")["link"]
    assert "say one with -o" in refusal(directory, hidden, code=2)
    assert "has a name that is none" in run("ibpfs", "share", two / "f", "--name", "../f", code=2).stderr
    os.mkfifo(two / "pipe")
    assert "/pipe: neither a file" in run("ibpfs", "share", two / "pipe", code=2).stderr


def test_ways_of_giving_a_link(two: Volume, directory: Path) -> None:
    (two / "f").write_bytes(DATA)
    run("ibpfs", "share", two / "f", "-o", directory / "f.ibpfs", "-q", "--qr")
    document = json.loads((directory / "f.ibpfs").read_text())
    assert (directory / "f.ibpfs").stat().st_mode & 0o777 == 0o600
    for number, words in enumerate(([directory / "f.ibpfs"], [document["link"]])):
        place = directory / str(number)
        place.mkdir()
        said = run("ibpfs", "get", *words, cwd=place).stderr
        assert ("others on this machine" in said) == (number == 1)
        assert (place / "f").read_bytes() == DATA
    web = share(two / "f", "--gateway", "https://share.example/x")["link"]
    message = email.message.EmailMessage()
    message["Subject"] = "a file"
    message.set_content(f"Hello,\nhere it is: <{web}>\n" + "and more text " * 20, cte="quoted-printable")
    message.add_alternative(f'<a href="{web}">here</a>', subtype="html", cte="base64")
    get(directory, message.as_string())
    assert (directory / "f").read_bytes() == DATA
    done = subprocess.run(
        [BIN / "ibpfs", "get", "-q", "--cat", directory / "f.ibpfs"], capture_output=True, check=True
    )  # fmt: skip
    assert done.stdout == DATA


def test_several_links_in_one_message(two: Volume, directory: Path) -> None:
    """What becomes of one is no matter of the others; a second run fetches what is missing."""
    for name in ("one", "gone", "two"):
        (two / name).write_bytes(name.encode() * 100_000)
    links = [share(two / name)["link"] for name in ("one", "gone", "two")]
    (directory / "one").write_bytes(b"mine")
    run("ibpfs", "share", "revoke", "--path", two / "gone")
    message = f"Hello,\n<{links[0]}>\nand <{links[1]}>,\n<{links[2]}>\n{links[0][:-5]}\n"
    said = get(directory, message, "-q", code=1)
    assert "ibpfs: one of 4 links in it is of no use: the link was cut off" in said
    assert "ibpfs: link 1 of 3: one: exists already" in said
    assert "ibpfs: link 2 of 3: the link was revoked by its sender" in said
    assert said.count("\n") == 3
    assert (directory / "two").read_bytes() == b"two" * 100_000
    (directory / "one").unlink()
    get(directory, message, "-q", code=1)
    assert (directory / "one").read_bytes() == b"one" * 100_000
    assert "-o must be a directory" in get(directory, message, "-o", "x", code=2)


def test_broken_links(two: Volume, directory: Path) -> None:
    (two / "f").write_bytes(DATA)
    link = share(two / "f")["link"]
    for text in (link[:-1], link[:-40], link.partition("#")[0], link.replace("#", ""), link[:20], "nothing", "",
                 link[:50] + ("A" if link[50] != "A" else "B") + link[51:]):  # fmt: skip
        refusal(directory, text, code=2)
    assert not list(directory.iterdir()) or {path.name for path in directory.iterdir()} <= {".local"}


def test_passphrases_and_recipients(two: Volume, directory: Path) -> None:
    (two / "f").write_bytes(DATA)
    word, wrong = directory / "word", directory / "wrong"
    word.write_text("Gr\u00fc\u00dfe aus K\u00f6ln\n")
    wrong.write_text("gruesse\n")
    for more in ((), ("--no-browser",)):
        link = share(two / "f", "--passphrase-file", word, *more)["link"]
        assert "passphrase is wrong" in refusal(directory, link, "--passphrase-file", wrong)
        assert "has a passphrase" in refusal(directory, link, code=2)
        get(directory, link, "--passphrase-file", word, "-o", f"f{len(more)}")
        assert (directory / f"f{len(more)}").read_bytes() == DATA
    identity, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    link = share(two / "f", "--to", str(identity.to_public()))["link"]
    (directory / "mine").write_text(str(identity))
    (directory / "other").write_text(str(other))
    assert "other recipients" in refusal(directory, link, "-i", directory / "other", code=2)
    assert "give the file" in refusal(directory, link, code=2)
    get(directory, link, "-i", directory / "mine")
    assert (directory / "f").read_bytes() == DATA
    run("ibpfs", "snapshot", "create", two.mountpoint, "now")
    assert "lies in a snapshot" in run("ibpfs", "share", two / ".snapshots" / "now" / "f", code=2).stderr
    assert "no recipient" in run("ibpfs", "share", two / "f", "--to", "somebody", code=2).stderr
