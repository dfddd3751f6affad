"""Links: what was shared comes out elsewhere, for as long as it should, and nobody else reads it."""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ibpfs.errors import VolumeError
from ibpfs.mail.settings import Settings
from ibpfs_tools.mail_sharing import MountSharer
from tests.depot import windowless
from tests.depot.conftest import LineClient

from .relays import Gate
from .running import BIN, HEARD, run, until
from .sharing import DATA, LOADS, get, refusal, share
from .volumes import Session, Volume

pytestmark = pytest.mark.mounted

def replayed(address: str, line: bytes) -> bytes:
    """What a depot answers to a line that somebody heard."""
    host, _, port = address.partition("://")[2].rpartition(":")
    client = LineClient(socket.create_connection((host, int(port)), timeout=20))
    client.send(line.decode())
    try:
        return bytes(client.line())
    finally:
        client.close()


def answered(volume: Volume, lines: list[bytes]) -> list[bytes]:
    """Those that give bytes now."""
    return [line for line in lines if replayed(volume.depots[0].address, line).startswith(b"1 ")]


def stored_bytes(volume: Volume) -> int:
    """On all its depots; an allocation may go while they are counted."""
    sizes = []
    for path in (path for depot in volume.depots for path in depot.allocations()):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes)


@contextmanager
def listened_to(session: Session, *words: str, **more: Any) -> Iterator[tuple[Volume, Gate]]:
    """A volume whose only depot is behind a gate, without TLS: so that capabilities can be heard."""
    with ExitStack() as stack:
        place = socket.create_server(("127.0.0.1", 0))
        port = place.getsockname()[1]
        place.close()
        gate = Gate("127.0.0.1", port)
        stack.callback(gate.close)
        depot = stack.enter_context(
            session.depot("--listen", f"127.0.0.1:{port}", "--public", f"127.0.0.1:{gate.port}", *words, **more)
        )
        volume = stack.enter_context(session.volume("--depot", f"ibp://127.0.0.1:{gate.port}", "--no-tls"))
        volume.depots = [depot]
        yield volume, gate


@pytest.fixture
def wired(session: Session) -> Iterator[tuple[Volume, Gate]]:
    with listened_to(session) as found:
        yield found


def test_fetched_elsewhere_killed_twice(wired: tuple[Volume, Gate], directory: Path) -> None:
    """With the sender's machine off. Neither secret nor content is with the depot, on the wire or on a command line."""
    volume, gate = wired
    data = b"The-Quick-Brown-Fox" * 100 + random.Random(3).randbytes(64 * 1024 * 1024)
    (volume / "report.bin").write_bytes(data)
    os.utime(volume / "report.bin", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    link = share(volume / "report.bin")["link"]
    volume.umount()
    command_lines = set()

    def parts() -> int:
        record = directory / ".report.bin.part.done"
        return len(re.findall(r"^\d+ \d+$", record.read_text(), re.M)) if record.exists() else 0

    for wanted in (2, 4):
        gate.let(20_000_000)
        process = subprocess.Popen(
            [BIN / "ibpfs", "get", "-", "--streams", "2"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=directory, env={**os.environ, "HOME": str(directory)},
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(link.encode())
        process.stdin.close()
        until(lambda wanted=wanted: parts() >= wanted, 60)
        command_lines.add(Path(f"/proc/{process.pid}/cmdline").read_bytes())
        process.kill()
        process.wait()
        assert not (directory / "report.bin").exists()
    gate.let(None)
    assert parts() < 16
    heard = len(gate.heard)
    assert "of it earlier" in get(directory, link)
    assert len(gate.heard) - heard < len(data) - 15 * 1024 * 1024
    assert (directory / "report.bin").read_bytes() == data
    assert (directory / "report.bin").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert not list(directory.glob(".report*"))
    secret = link.rpartition("#")[2].encode()
    stored = b"".join(path.read_bytes() for path in volume.depots[0].allocations())
    said = volume.log().encode() + volume.depots[0].errors.read_bytes() + "\n".join(HEARD.errors).encode()
    for text in (stored, bytes(gate.heard), said, *command_lines, *HEARD.command_lines):
        assert secret not in text
        assert b"The-Quick-Brown-Fox" not in text
    for text in (stored, bytes(gate.heard), volume.log().encode()):
        assert b"report.bin" not in text


def test_one_of_two_depots_dead(two: Volume, directory: Path) -> None:
    two.expect("does not answer")
    (two / "f").write_bytes(DATA)
    found = share(two / "f")
    link = found["link"]
    two.depots[0].stop()
    get(directory, link)
    assert (directory / "f").read_bytes() == DATA
    done = run("ibpfs", "share", "revoke", share(two / "f")["id"], "--volume", two.root)
    assert "revoked, f; windows" in done.stdout  # it never had anything on the dead one
    two.depots[1].stop()
    assert "no depot of the link answers" in refusal(directory, link)
    two.depots[1].start()
    done = run("ibpfs", "share", "revoke", found["id"], "--volume", two.root, code=1)
    here, there = (depot.address.partition(":")[2] for depot in two.depots)
    assert "not revoked everywhere, f; windows" in done.stdout
    assert f"{there}; its record is deleted at" in done.stdout
    assert here not in done.stdout
    assert f"{here}: windows there are not closed (" in done.stderr
    assert "revoked by its sender" in refusal(directory, link)


def test_depots_with_other_certificates(two: Volume, directory: Path) -> None:
    """One: told, and the other copy is taken. Both: refused."""
    (two / "f").write_bytes(DATA)
    found = share(two / "f")
    link = found["link"]
    told = json.loads(run("ibpfs", "share", "info", found["id"], "--json", "--volume", two.root).stdout)["depots"]
    in_turn = sorted(two.depots, key=lambda one: told.index(one.address.replace("ibp:", "ibps:")))
    unlike = "not used: its certificate is not the one that the link names"
    two.umount()
    for number, depot in enumerate(in_turn):
        get(directory / f"before{number}", link)
        depot.stop()
        (depot.store / "certificate.pem").unlink()
        depot.start()
        if number == 0:
            assert get(directory / "one", link, "--force").count(unlike) == 1
            assert (directory / "one" / "f").read_bytes() == DATA
    assert "refused: its certificate is not the one" in refusal(directory / "none", link)
    assert not (directory / "none" / "f").exists()


def test_revoked(wired: tuple[Volume, Gate], directory: Path) -> None:
    """At once, the captured lines too; the file and its other links stay."""
    volume, gate = wired
    (volume / "f").write_bytes(DATA)
    gone, stays = share(volume / "f"), share(volume / "f")
    assert "revoking it closes windows" in gone["revocation"]
    before = len(gate.heard)
    get(directory / "a", gone["link"])
    lines = answered(volume, LOADS.findall(bytes(gate.heard[before:])))
    assert len(lines) >= 3
    said = run("ibpfs", "share", "revoke", gone["id"], "--volume", volume.root).stdout
    assert f"windows on the volume's allocations are closed at ibp://127.0.0.1:{gate.port}; its record is" in said
    assert "revoked by its sender" in refusal(directory / "b", gone["link"])
    assert not answered(volume, lines)
    several = share(volume / "f"), share(volume / "f")
    ids = several[0]["id"], "unknown", several[1]["id"]
    done = run("ibpfs", "share", "revoke", *ids, "--volume", volume.root, code=2)
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [f"{one['id']}: revoked" for one in several]
    assert done.stderr.startswith("ibpfs: unknown: ")
    get(directory / "b", stays["link"])
    assert (directory / "b" / "f").read_bytes() == DATA
    volume.drop_cache()
    assert (volume / "f").read_bytes() == DATA
    assert [row["id"] for row in json.loads(run("ibpfs", "share", "list", "--json", "--volume", volume.root).stdout)
            ] == [stays["id"]]  # fmt: skip
    (volume / "f").unlink()
    run("ibpfs", "share", "revoke", "--path", volume / "f")
    assert "revoked by its sender" in refusal(directory / "c", stays["link"])
    (volume / "one" / "two").mkdir(parents=True)
    (volume / "one" / "two" / "f").write_bytes(b"x")
    shared = volume / "one" / "two" / "f", volume / "one", volume.mountpoint
    links = [share(place)["link"] for place in shared]
    run("rm", "-r", volume / "one")
    for place, link, left in zip((shared[0].parent, *shared[1:]), links, (2, 1, 0), strict=True):
        run("ibpfs", "share", "revoke", "--path", place)
        assert "revoked by its sender" in refusal(directory / "c", link)
        assert len(json.loads(run("ibpfs", "share", "list", "--json", "--volume", volume.root).stdout)) == left
    assert "no links to it" in run("ibpfs", "share", "revoke", "--path", volume.mountpoint, code=2).stderr


def test_revoked_without_windows(session: Session, directory: Path) -> None:
    """Depots make the private copies themselves; what one does not delete stays listed, and is asked for again."""
    with listened_to(session, program=(sys.executable, windowless.__file__)) as (volume, gate):
        volume.expect("not ended|released")
        depot, address = volume.depots[0], f"ibp://127.0.0.1:{gate.port}"
        (volume / "f").write_bytes(DATA)
        gone, stays = share(volume / "f"), share(volume / "f")
        assert gone["depot_copied_bytes"] == gone["copied_bytes"] == len(DATA)
        assert f"deletes private copies of 2.9 MiB at {address}" in gone["revocation"]
        before = len(gate.heard)
        get(directory / "a", gone["link"])
        lines = answered(volume, LOADS.findall(bytes(gate.heard[before:])))
        assert len(lines) >= 3

        (depot.store / windowless.FLAG).touch()
        revoke = "ibpfs", "share", "revoke", "--volume", volume.root
        done = run(*revoke, gone["id"], code=1)
        assert f"{gone['id']}: not revoked everywhere, f; nothing has ended" in done.stdout
        assert f"{address}: the record there is not deleted (the depot answered -12" in done.stderr
        assert "who has opened the link can read 2.9 MiB of it until" in done.stderr
        with pytest.raises(VolumeError, match=f"{gone['id']}: {address}: private copies there are not deleted"):
            MountSharer(Settings(volume=str(volume.root))).revoke([gone["id"]])
        assert states(volume) == {gone["id"]: "ending", stays["id"]: "active"}
        shown = json.loads(run("ibpfs", "share", "info", gone["id"], "--json", "--volume", volume.root).stdout)
        assert "revoked, and is not yet everywhere" in shown["revocation"]
        assert len(answered(volume, lines)) == len(lines)

        (depot.store / windowless.FLAG).unlink()
        volume.remount()
        until(lambda: states(volume) == {stays["id"]: "active"})
        assert "revoked by its sender" in refusal(directory / "b", gone["link"])
        assert not answered(volume, lines)
        get(directory / "b", stays["link"])
        said = run(*revoke, stays["id"]).stdout
        assert f"revoked, f; private copies of 2.9 MiB are deleted at {address}; its record is deleted" in said
        assert "revoked by its sender" in refusal(directory / "c", stays["link"])
        volume.drop_cache()
        assert (directory / "b" / "f").read_bytes() == (volume / "f").read_bytes() == DATA


def states(volume: Volume) -> dict[str, str]:
    """Of its links, by id."""
    rows = json.loads(run("ibpfs", "share", "list", "--json", "--volume", volume.root).stdout)
    return {row["id"]: row["state"] for row in rows}


def test_expired_with_the_sender_off(wired: tuple[Volume, Gate], directory: Path) -> None:
    volume, gate = wired
    (volume / "f").write_bytes(DATA)
    found = share(volume / "f", "--expires", "10s")
    before = len(gate.heard)
    get(directory / "a", found["link"])
    lines = answered(volume, LOADS.findall(bytes(gate.heard[before:])))
    assert len(lines) >= 3
    volume.umount()
    until(lambda: not answered(volume, lines), 60)
    until(lambda: "the link has expired" in refusal(directory / "b", found["link"]), 10)


def test_links_outlive_leases_without_a_mount(session: Session, directory: Path) -> None:
    """As long as they are to, and no longer: a LOAD that somebody captured is refused then."""
    lease, expires = 5, 22
    with listened_to(session, "--max-lease", f"{lease}s") as (volume, gate):
        (volume / "f").write_bytes(DATA)
        before, began = len(gate.heard), time.time()
        found = share(volume / "f", "--expires", f"{expires}s")
        assert found["hold_until"] < began + expires - lease
        get(directory / "first", found["link"])
        lines = answered(volume, LOADS.findall(bytes(gate.heard[before:])))
        assert len(lines) >= 3
        volume.umount()
        renewed = 0
        while time.time() < began + 2 * lease + 1:
            renewed += warm(volume)
            time.sleep(lease / 8)
        assert renewed >= 2 * 3

        def fetched() -> bool:
            warm(volume, "--all")  # a whole lease is time enough, if the machine has it
            return "ibpfs:" not in get(directory / "then", found["link"], "-q", code=None)

        until(fetched, expires)
        assert (directory / "then" / "f").read_bytes() == DATA
        while time.time() < found["expires"] + 1:
            warm(volume)
            time.sleep(lease / 8)
        warm(volume, "--all")
        assert not answered(volume, lines)
        assert "the link has expired" in refusal(directory / "late", found["link"])


def warm(volume: Volume, *words: str) -> int:
    """How many leases were renewed."""
    return int(json.loads(run("ibpfs", "warm", "--json", volume.root, *words, code=None).stdout)["renewed"])


def test_a_snapshot(two: Volume, directory: Path) -> None:
    """Neither edits, nor deletion, nor compaction change it; what it keeps is released when it ends."""
    (two / "other").write_bytes(b"x" * 1000)
    (two / "f").write_bytes(DATA)
    two.flush()
    with (two / "f").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"a secret of yesterday")
        os.fsync(file.fileno())
        file.seek(1_000_000)
        file.write(b"what it says since then!")
        os.fsync(file.fileno())
        file.truncate(4_000_000)
    expected = (two / "f").read_bytes()
    found = share(two / "f", "--note", "with love")
    assert found["copied_bytes"] > 0
    with (two / "f").open("r+b") as file:
        file.write(b"later")
    run("ibpfs", "compact", two.mountpoint)
    (two / "f").unlink()
    two.flush()
    run("ibpfs", "compact", two.mountpoint)
    assert "with love" in get(directory, found["link"])
    assert (directory / "f").read_bytes() == expected
    assert two.status()["shares_hold_until"] == pytest.approx(found["expires"], abs=60)
    assert stored_bytes(two) > 2 * len(DATA)
    run("ibpfs", "share", "revoke", found["id"], "--volume", two.root)
    run("ibpfs", "compact", two.mountpoint)
    until(lambda: stored_bytes(two) < len(DATA), 60)
    assert two.status()["shares_hold_until"] is None
    assert (two / "other").read_bytes() == b"x" * 1000


def test_directories(two: Volume, directory: Path) -> None:
    tree = two / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "caf\udce9").write_bytes(b"not utf-8")
    (tree / "run.sh").write_bytes(b"#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "nothing").touch()
    (tree / "big").write_bytes(DATA)
    (tree / ".run.sh.part").write_bytes(b"a name like that of a part")
    (tree / "link").symlink_to("big")
    (tree / "sub" / "all").symlink_to("./..//sub/")
    for name, target in {"passwd": "/etc/passwd", "sub/out": "../..", "sub/round": "empty/../all"}.items():
        (tree / name).symlink_to(target)
    os.mkfifo(tree / "sub" / "pipe")
    found = share(tree, "--name", "for you")
    assert (found["type"], found["files"], found["links"]) == ("directory", 5, 2)
    assert sorted(found["left_out"]) == ["passwd", "sub/out", "sub/pipe", "sub/round"]
    said = run("ibpfs", "share", tree).stderr.splitlines()
    assert "left out: 4 (3 symbolic links that could lead out of it, 1 named pipes), such as" in said[-1]
    (line,) = run("ibpfs", "share", "--quiet", tree).stderr.splitlines()
    assert line.startswith("left out: 4 ")
    assert "5 files, 2 symbolic links, " in get(directory, found["link"])
    for name in found["left_out"]:
        (tree / name).unlink()
    assert (directory / "for you" / "sub" / "all").readlink() == Path("../sub")
    run("diff", "-r", "--no-dereference", "-x", "all", tree, directory / "for you")
    get(directory, found["link"], "--adopt", two.mountpoint, "-o", "adopted")
    assert (two / "adopted" / "link").readlink() == Path("big")
    run("diff", "-r", "--no-dereference", two / "adopted", directory / "for you")
    assert os.access(directory / "for you" / "run.sh", os.X_OK)
    assert (directory / "for you").stat().st_mtime_ns // 10**9 <= tree.stat().st_mtime_ns // 10**9
    assert not list(directory.glob(".for*"))
    assert "exists already" in refusal(directory, found["link"])


def test_listed_extended_and_kept(two: Volume, directory: Path) -> None:
    (two / "f").write_bytes(DATA)
    found = share(two / "f", "--expires", "1h")
    run("ibpfs", "share", "extend", found["id"], "30s", "--volume", two.root, code=2)
    extended = json.loads(
        run("ibpfs", "share", "extend", found["id"], "30d", "--volume", two.root, "--json").stdout
    )
    assert extended["link"] == found["link"]
    assert extended["hold_until"] > found["expires"] + 20 * 86400
    shown = json.loads(run("ibpfs", "share", "info", found["id"], "--json", "--volume", two.root).stdout)
    assert shown["expires"] == extended["expires"]
    assert len(shown["depots"]) == len(shown["records"]) == 2
    two.remount()
    said = get(directory, found["link"], "--info")
    assert "the same" not in said
    assert "the same as on" in get(directory, found["link"])
    assert found["id"] in run("ibpfs", "share", "list").stdout  # of all that are mounted
    assert found["id"] in run("ibpfs", "share", "info", found["id"], "--json").stdout
    assert "no share" in run("ibpfs", "share", "info", "abc", "--volume", two.root, code=2).stderr
    assert "link" in run("ibpfs", "status", two.mountpoint).stdout
