"""A link to a large file, fetched where there is nothing but the depots' addresses and a fresh virtual environment.

python tests/foreign/elsewhere.py [MIB] [DIRECTORY], as root, with a package registry for pip; takes away what it made.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PIECE = 1 << 20
SPACE = "ibpfs-elsewhere"
HERE, THERE = "10.213.77.1", "10.213.77.2"


def run(*words: object, **more: Any) -> str:
    done = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True, **more)
    return done.stdout


@contextmanager
def elsewhere() -> Iterator[list[str]]:
    """What to put before a command that is to see this machine's depots and no other network."""
    run("ip", "netns", "add", SPACE)
    try:
        run("ip", "link", "add", "ibpfs-here", "type", "veth", "peer", "name", "ibpfs-there", "netns", SPACE)
        run("ip", "addr", "add", f"{HERE}/30", "dev", "ibpfs-here")
        run("ip", "link", "set", "ibpfs-here", "up")
        inside = ["ip", "netns", "exec", SPACE]
        run(*inside, "ip", "addr", "add", f"{THERE}/30", "dev", "ibpfs-there")
        run(*inside, "ip", "link", "set", "ibpfs-there", "up")
        assert run(*inside, "ip", "route", "show").count("\n") == 1
        yield inside
    finally:
        run("ip", "netns", "del", SPACE)


@contextmanager
def depot(store: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    words = [BIN / "ibpfs-depot", "--listen", f"{HERE}:0", "--store", store]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], process
        finally:
            process.terminate()


def write(path: Path, mib: int) -> str:
    """Random bytes, on the depots; their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            piece = os.urandom(PIECE)
            digest.update(piece)
            file.write(piece)
        os.fsync(file.fileno())
    return digest.hexdigest()


def share(base: Path, addresses: list[str], mib: int) -> tuple[str, str]:
    """The link and the file's SHA-256; the volume is not mounted any more."""
    volume, mountpoint = base / "volume", base / "mnt"
    mountpoint.mkdir()
    depots = [word for one in addresses for word in ("--depot", one)]
    run(BIN / "mkfs.ibpfs", volume, "--copies", "2", *depots)
    run(BIN / "mount.ibpfs", volume, mountpoint)
    try:
        written = write(mountpoint / "big.bin", mib)
        began = time.monotonic()
        found = json.loads(run(BIN / "ibpfs", "share", "--json", mountpoint / "big.bin"))
        print(f"shared {mib} MiB in {time.monotonic() - began:.1f} s, {found['copied_bytes']} bytes copied for it")
    finally:
        run(BIN / "umount.ibpfs", mountpoint)
    return found["link"], written


class Receiver:
    """Somebody else's `ibpfs`, installed in an empty virtual environment, with a home directory of its own."""

    def __init__(self, base: Path, inside: list[str]) -> None:
        self.home = base / "home"
        self.home.mkdir()
        run(sys.executable, "-m", "venv", base / "venv")
        run(base / "venv" / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", ROOT,
            stderr=subprocess.DEVNULL)  # fmt: skip
        self._words = [*inside, "env", "-i", f"HOME={self.home}", str(base / "venv" / "bin" / "ibpfs"), "get", "-"]

    def start(self, link: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.home, text=True)
        assert process.stdin is not None
        process.stdin.write(link)
        process.stdin.close()
        process.stdin = None
        return process

    def finish(self, link: str) -> None:
        began = time.monotonic()
        process = self.start(link)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        print(said.splitlines()[-1], f"   {time.monotonic() - began:.1f} s")

    def parts(self) -> int:
        record = self.home / ".big.bin.part.done"
        return record.read_text().count("\n") if record.exists() else 0

    def kill_at(self, link: str, wanted: int) -> None:
        process = self.start(link)
        while self.parts() < wanted:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.kill()
        process.communicate()
        print(f"killed with {self.parts()} parts of 4 MiB")
        assert not (self.home / "big.bin").exists()

    def digest(self) -> str:
        with (self.home / "big.bin").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def main(mib: int, directory: str) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as name, ExitStack() as stack:
        base = Path(name)
        inside = stack.enter_context(elsewhere())
        depots = [stack.enter_context(depot(base / f"depot{number}")) for number in (1, 2)]
        link, written = share(base, [address for address, _ in depots], mib)
        receiver = Receiver(base, inside)
        receiver.kill_at(link, mib // 14)
        receiver.kill_at(link, mib // 7)
        receiver.finish(link)
        assert receiver.digest() == written
        print(f"same: {written}")
        (receiver.home / "big.bin").unlink()
        depots[0][1].terminate()
        depots[0][1].wait()
        receiver.finish(link)
        assert receiver.digest() == written
        print("one depot stopped: the same")


if __name__ == "__main__":
    main(int((sys.argv[1:2] or ["2048"])[0]), (sys.argv[2:3] or ["/var/tmp"])[0])
