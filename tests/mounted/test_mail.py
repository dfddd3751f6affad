"""Mail with large files, the whole way: mutt, a real Postfix, a mailbox, and back to the file."""

import json
import os
import random
import shutil
import subprocess
import threading
import time
from base64 import encodebytes
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path
from urllib.parse import quote

import pytest

from ibpfs.exnode_store.sharing.links import Link
from ibpfs.mail.links import links_in
from ibpfs_tools.thunderbird import SOURCES
from tests.gateway import browser as chromium
from tests.gateway.conftest import GatewayProcess
from tests.gateway.tap import Tap
from tests.mail.letters import CORPUS

from .mail_server import MailServer
from .running import BIN, HEARD, Done, command_line, run, until
from .volumes import Volume

pytestmark = [pytest.mark.mounted, pytest.mark.usefixtures("as_root")]

#: IBPFS_MAIL_TEST_MIB=300 for a recorded run.
SIZE = int(os.environ.get("IBPFS_MAIL_TEST_MIB", "8")) << 20
BODY = "Dear Ben,\n\nhere it is.\n.\n-- \nAda\n"


@pytest.fixture
def server(directory: Path) -> MailServer:
    if not Path("/usr/sbin/postfix").exists():
        pytest.skip("no Postfix, or another mail server in its place")
    directory.chmod(0o755)
    base = directory / "postfix"
    base.mkdir()
    return MailServer(base)


@pytest.fixture
def file(directory: Path) -> Path:
    """A file with a name as people give them."""
    path = directory / "Übersicht 2026.bin"
    source = random.Random(7)
    with path.open("wb") as out:
        for _ in range(SIZE >> 20):
            out.write(source.randbytes(1 << 20))
    return path


class Writer:
    """Somebody with mutt, whose mail goes by ibpfs-sendmail or by a server's own."""

    def __init__(self, home: Path, sendmail: str) -> None:
        self.home = home
        home.mkdir()
        (home / "muttrc").write_text(
            f'set sendmail="{sendmail} -oem -oi"\nset from="Ada <ada@example.net>"\nset use_from=yes\n'
            f'set use_envelope_from=yes\nset copy=no\nset tmpdir="{home}"\nset hostname=example.net\n'
        )

    def settings(self, **settings: object) -> None:
        given = {"local_links": "send"} | settings
        text = "".join(f'{name} = "{value}"\n' for name, value in given.items())
        (self.home / "mail.toml").write_text(text)

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "IBPFS_MAIL_CONFIG": str(self.home / "mail.toml")}

    def send(self, *files: Path, to: str = "ben@example.net", code: int = 0) -> Done:
        attached = ["-a", *files] if files else []
        words = ["mutt", "-F", self.home / "muttrc", "-s", "a file", *attached, "--", to]
        return run(*words, input=BODY, env=self.environment(), code=code, timeout=600)


def start_filter(server: MailServer, volume: Volume, *words: str, port: int = 0) -> subprocess.Popen[bytes]:
    """`ibpfs mail-filter` in front of a server."""
    with (server.base.parent / "filter.log").open("ab") as log:
        return subprocess.Popen(
            [BIN / "ibpfs", "mail-filter", "--listen", f"127.0.0.1:{port}", "--next", f"127.0.0.1:{server.back}",
             "--volume", volume.root, "--local-links", "send", *words],
            stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def port_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until it listens."""
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert " ready " in line
    return int(line.rpartition(":")[2])


@contextmanager
def filtering(server: MailServer, volume: Volume, *words: str, port: int = 0) -> Iterator[int]:
    """A filter while in the block; gives its port."""
    errors = server.base.parent / "filter.log"
    with start_filter(server, volume, *words, port=port) as process:
        try:
            yield port_of(process)
        finally:
            process.terminate()
            assert process.wait(60) == 0
            HEARD.errors.append(errors.read_text())


def fetched(message: bytes, directory: Path) -> Path:
    """What `ibpfs get -` makes of a message that a mail program pipes into it."""
    target = directory / "received"
    target.mkdir()
    subprocess.run(
        [BIN / "ibpfs", "get", "-"], input=message, cwd=target, check=True, capture_output=True, timeout=600,
        env={**os.environ, "XDG_DATA_HOME": str(directory)},
    )  # fmt: skip
    (found,) = target.iterdir()
    return found


def texts(message: bytes) -> list[str]:
    parts = message_from_bytes(message).walk()
    found = [part.get_payload(decode=True) for part in parts if part.get_content_type() == "text/plain"]
    return [text.decode() for text in found if isinstance(text, bytes)]


def test_from_mutt_to_a_mailbox_and_back_to_the_file(
    shared: Volume, server: MailServer, directory: Path, file: Path
) -> None:
    writer = Writer(directory / "ada", "ibpfs-sendmail")
    writer.settings(volume=shared.root, sendmail=server.sendmail, on_error="defer")
    small = directory / "small.txt"
    small.write_text("small\n")
    with server.running():
        writer.send(file, small)
        (message,) = server.arrived("ben")
    assert len(message) < 20_000
    assert texts(message)[0] == BODY
    assert "small\n" in texts(message)
    assert message_from_bytes(message)["From"] == "Ada <ada@example.net>"
    received = fetched(message, directory)
    assert received.name == file.name
    assert received.read_bytes() == file.read_bytes()
    assert not list((shared / ".ibpfs-mail").iterdir())  # it passed through


def test_through_the_filter_of_the_mail_server(
    shared: Volume, server: MailServer, directory: Path, file: Path
) -> None:
    writer = Writer(directory / "ada", str(server.sendmail))
    small = directory / "small.txt"
    small.write_text("small\n")
    with filtering(server, shared, "--on-error", "defer") as port, server.running(filtered=port):
        writer.send(file)
        (message,) = server.arrived("ben")
        writer.send(small, to="carl@example.net")
        (plain,) = server.arrived("carl")
    assert len(message) < 20_000
    assert texts(message)[0] == BODY
    received = fetched(message, directory)
    assert (received.name, received.read_bytes()) == (file.name, file.read_bytes())
    assert texts(plain) == [BODY, "small\n"]
    assert not links_in(plain)
    log = (directory / "filter.log").read_text()
    assert file.name not in log
    assert "#" not in log


def test_a_signed_message_is_left_alone(shared: Volume, server: MailServer) -> None:
    """Up to the fields that servers write above it, the message arrives as it was sent."""
    signed = (CORPUS / "signed-pgp.eml").read_bytes()
    with filtering(server, shared, "--threshold", "2k", "--on-error", "defer") as port, server.running(filtered=port):
        run(server.sendmail, "-i", "-f", "ada@example.net", "ben@example.net", input=signed.decode())
        (message,) = server.arrived("ben")
    assert message.endswith(signed[signed.index(b"MIME-Version") :])


def test_without_the_volume_the_original_goes(
    volume: Volume, server: MailServer, directory: Path, file: Path
) -> None:
    writer = Writer(directory / "ada", "ibpfs-sendmail")
    writer.settings(volume=volume.root, sendmail=server.sendmail)
    volume.umount()
    with server.running():
        writer.send(file)
        (message,) = server.arrived("ben")
        assert len(message) > SIZE
        assert not links_in(message[:100_000])
        writer.settings(volume=volume.root, sendmail=server.sendmail, on_error="defer")
        done = writer.send(file, code=1)
        assert "not sent" in done.stdout + done.stderr
        assert len(server.mailbox("ben")) == 1


def test_links_that_would_open_here_alone_do_not_go(
    shared: Volume, server: MailServer, directory: Path, file: Path
) -> None:
    """A receiver elsewhere could not reach an embedded depot."""
    writer = Writer(directory / "ada", "ibpfs-sendmail")
    writer.settings(volume=shared.root, sendmail=server.sendmail, local_links="refuse")
    before = run("ibpfs", "share", "list", "--json", "--volume", shared.root).stdout
    with server.running():
        assert "open on this machine alone" in writer.send(file).stderr
        (message,) = server.arrived("ben")
    assert len(message) > SIZE
    assert not links_in(message[:100_000])
    assert run("ibpfs", "share", "list", "--json", "--volume", shared.root).stdout == before
    assert not list((shared / ".ibpfs-mail").iterdir())


def test_or_it_waits_with_the_server_until_the_volume_is_there(
    volume: Volume, server: MailServer, directory: Path, file: Path
) -> None:
    writer = Writer(directory / "ada", str(server.sendmail))
    volume.umount()
    with filtering(server, volume, "--on-error", "defer") as port, server.running(filtered=port):
        writer.send(file)
        until(lambda: "is not mounted" in server.queued(), 60, "the refusal in the queue")
        assert not server.mailbox("ben")
        volume.mount()
        (message,) = server.arrived("ben")
    assert fetched(message, directory).read_bytes() == file.read_bytes()


def test_from_the_thunderbird_add_on_to_the_file(shared: Volume, directory: Path, file: Path) -> None:
    """Deleting an attachment ends its link; one that is aborted leaves none."""
    deleted, aborted = directory / "deleted.bin", directory / "aborted.bin"
    deleted.write_bytes(b"deleted" * 1000)
    aborted.write_bytes(b"aborted" * 1000)
    (directory / "mail.toml").write_text(f'volume = "{shared.root}"\nexpires = "2d"\nlocal_links = "send"\n')
    driver = Path(__file__).parents[1] / "tools" / "thunderbird.mjs"
    program = BIN / "ibpfs-thunderbird-host"
    done = run("node", driver, SOURCES, program, deleted, file, aborted, timeout=600,
               env={"IBPFS_MAIL_CONFIG": str(directory / "mail.toml")})  # fmt: skip
    status, first, second, third, end = map(json.loads, done.stdout.splitlines())
    assert status["volume"] == f"{shared.root.name} on {shared.mountpoint}"
    until_then = second["templateInfo"]["download_expiry_date"]["timestamp"] / 1000 - time.time()
    assert 86400 < until_then <= 2 * 86400 + 60
    received = fetched(second["url"].encode(), directory)
    assert (received.name, received.read_bytes()) == (file.name, file.read_bytes())
    assert third == {"aborted": True}
    assert end == {"configured": True, "stored": 1}
    refused = run("ibpfs", "get", "-", input=first["url"], code=1, cwd=directory)
    assert "revoked" in refused.stderr


def test_a_filter_that_is_killed_with_a_message_in_its_hands_loses_none(
    shared: Volume, server: MailServer, directory: Path, file: Path
) -> None:
    """Postfix has it until the filter said that the next server has."""
    writer = Writer(directory / "ada", str(server.sendmail))
    passing = shared / ".ibpfs-mail"
    passing.mkdir(exist_ok=True)
    with start_filter(server, shared) as first:
        port = port_of(first)
        with server.running(filtered=port):
            writer.send(file)
            until(lambda: list(passing.iterdir()) or server.mailbox("ben"), 60, "the file on its way")
            first.kill()
            first.wait()
            with filtering(server, shared, port=port):
                message = server.arrived("ben")[-1]
    for left in passing.iterdir():  # after a day the next one would
        shutil.rmtree(left)
    assert fetched(message, directory).read_bytes() == file.read_bytes()
    assert server.queued().startswith("Mail queue is empty")


class Watch:
    """Looks at the command lines of all processes, again and again."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self.seen.update(command_line(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def test_from_mutt_to_a_browser(
    shared: Volume, server: MailServer, directory: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link in the mailbox opens in Chromium; nobody on the way saw its secret or the file."""
    monkeypatch.setattr(chromium, "PATIENCE", 600.0)
    writer = Writer(directory / "ada", "ibpfs-sendmail")
    gateway, browser = GatewayProcess(directory, "--allow", "127.0.0.0/8"), chromium.Browser(directory)
    with Tap("127.0.0.1", int(gateway.url.rstrip("/").rpartition(":")[2])) as wire:
        url = f"http://127.0.0.1:{wire.port}/"
        try:
            writer.settings(volume=shared.root, sendmail=server.sendmail, on_error="defer", gateway=url)
            with Watch() as watch:
                with server.running():
                    writer.send(file)
                    (message,) = server.arrived("ben")
                (link,) = links_in(message)
                fetched(message, directory)
                assert link.startswith(f"{url}s/")
                browser.go(link)
                browser.click("#found:not([hidden]) #download")
                assert browser.downloaded(file.name).read_bytes() == file.read_bytes()
        finally:
            browser.close()
            assert gateway.stop() == 0
    logs = [gateway.log, server.base / "log", *(shared.root / "log").iterdir()]
    stored = [path for path in (shared.root / "depot").rglob("*") if path.is_file()]
    places = {
        "a command line": b"\n".join(watch.seen),
        "the gateway's traffic": wire.heard,
        **{str(path): path.read_bytes() for path in (*logs, *stored)},
    }
    opened = Link.parse(link)
    secret, content = opened.fragment.secret, file.read_bytes()
    assert secret is not None
    secrets = [link.partition("#")[2].encode(), secret, secret.hex().encode()]
    plain = [content[place : place + 48] for place in range(0, len(content) - 48, len(content) // 9)]
    names = [file.name.encode(), quote(file.name).encode()]
    assert found_in(places, [*secrets, *plain]) == []
    assert found_in({place: data for place, data in places.items() if place != "a command line"}, names) == []
    # That it would find them: each place has what it should have, and the search sees it.
    assert found_in(places, [b"ibpfs-sendmail"])[0] == "a command line"
    assert "the gateway's traffic" in found_in(places, [opened.locator.render().encode()])
    assert len(wire.heard) > len(content)
    assert sum(map(len, places.values())) - len(wire.heard) > len(content)
    (shared.root / "log" / "planted").write_bytes(b"a word, " + plain[4] + b", another")
    planted = {str(path): path.read_bytes() for path in (shared.root / "log").iterdir()}
    assert found_in(planted, plain) == [str(shared.root / "log" / "planted")]
    (shared.root / "log" / "planted").unlink()


def found_in(places: dict[str, bytes], words: list[bytes]) -> list[str]:
    """In which of them any of the words stands."""
    return [place for place, data in places.items() if any(word in data for word in words)]


def test_what_other_programs_say_to_sendmail(shared: Volume, server: MailServer, directory: Path) -> None:
    """Recipients in the message, lines that end in CRLF, options of delivery reports, a dialogue."""
    writer = Writer(directory / "ada", "ibpfs-sendmail")
    writer.settings(volume=shared.root, sendmail=server.sendmail, threshold="20k", on_error="defer")

    def sendmail(*words: str, message: bytes) -> str:
        return run("ibpfs-sendmail", *words, input=message.decode(), env=writer.environment()).stdout

    file = random.Random(3).randbytes(60_000)
    message = (
        b"From: ada@example.net\nTo: ben@example.net\nBcc: carl@example.net\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\nhello\n.\n..dots\n"
        b"--b\nContent-Type: application/pdf; name*0*=utf-8''%C3%9C; name*1=b.pdf\n"
        b"Content-Transfer-Encoding: base64\nContent-Disposition: attachment\n\n" + encodebytes(file) + b"--b--\n"
    )
    with server.running():
        sendmail("-t", "-oi", message=message.replace(b"\n", b"\r\n"))
        (to,), (blind,) = server.arrived("ben"), server.arrived("carl")
        sendmail("-bm", "-oem", "-N", "failure", "-V", "abc", "-R", "hdrs", "-F", "Ada X", "--", "ada@example.net",
                 message=b"Subject: s\n\nbody\n.\nbehind the end\n")  # fmt: skip
        (plain,) = server.arrived("ada")
        assert "ESMTP Postfix" in sendmail("-bs", message=b"QUIT\r\n")
    assert texts(to)[0] == texts(blind)[0] == "hello\n.\n..dots"
    assert b"Bcc" not in to + blind
    received = fetched(blind, directory)
    assert (received.name, received.read_bytes()) == ("Üb.pdf", file)
    assert message_from_bytes(plain)["From"].startswith("Ada X <")
    assert texts(plain)[0].strip() == "body"


def test_git_send_email(shared: Volume, server: MailServer, directory: Path) -> None:
    """An attached patch above the threshold is a link, an inline one is text."""
    writer = Writer(directory / "ada", "ibpfs-sendmail")
    writer.settings(volume=shared.root, sendmail=server.sendmail, threshold="20k", on_error="defer")
    (directory / "ada" / ".gitconfig").write_text(
        f"[user]\nname = Ada\nemail = ada@example.net\n[sendemail]\nsmtpserver = {BIN / 'ibpfs-sendmail'}\n"
        "confirm = never\nsuppresscc = all\n"
    )
    sources = directory / "sources"

    def git(*words: object) -> str:
        return run("git", *words, cwd=sources, env=writer.environment()).stdout

    sources.mkdir()
    git("init", "-q")
    (sources / "text").write_text("".join(f"line {number} of many\n" for number in range(3000)))
    git("add", "text")
    git("commit", "-q", "-m", "A large change")
    with server.running():
        for words, person in ((["--attach"], "ben"), ([], "carl")):
            git("format-patch", "-1", *words, "-o", f"patch-{person}")
            git("send-email", "--quiet", "--to", f"{person}@example.net", f"patch-{person}/0001-A-large-change.patch")
            server.arrived(person)
    (attached,), (inline,) = server.arrived("ben"), server.arrived("carl")
    assert not links_in(inline)
    assert b"+line 2999 of many" in inline
    received = fetched(attached, directory)
    assert received.name == "0001-A-large-change.patch"
    assert "+line 2999 of many\n" in received.read_text()
