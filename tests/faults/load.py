"""A load on a mount that writes down, outside of it, what it was promised.

Run as: load.py DIRECTORY JOURNAL SEED SOURCE

Each line of the journal is a JSON list, written (one write) after the call that promised it has returned:
["begun"]  the load begins; ["closed", name, sha256]  the file was written and closed; ["going", name]  it is about to
be changed, renamed away or removed; ["synced", name]  an fsync of it had returned; ["committed", n]  row n of the
database was committed; ["revision", hash]  git made this commit; ["failed", text]  what a call failed with; ["done"]
nothing more will come.
Ends quietly when the mount goes away beneath it, and after the step that it is at on SIGTERM; with an error when a file
is read that is not what was written.
"""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

STEPS = ["new", "new", "copy", "copy", "replace", "change", "remove", "shrink", "synced", "verify"]
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT, errno.ENODEV}


class Load:
    def __init__(self, directory: Path, journal: Path, seed: int, source: Path) -> None:
        self.directory = directory
        self.dice = random.Random(seed)
        self.journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.round = seed
        self.sources = [path for path in source.rglob("*.py") if path.is_file()]
        self.names: list[str] = []
        self.digests: dict[str, str] = {}
        self.count = 0
        self.is_told_to_end = False

    def say(self, *words: object) -> None:
        os.write(self.journal, json.dumps(words).encode() + b"\n")

    def fresh(self) -> str:
        self.count += 1
        return f"r{self.round}-{self.count}"

    def write(self, name: str, data: bytes, *, sync: bool = False) -> None:
        with (self.directory / name).open("wb", buffering=0) as file:
            at = 0
            while at < len(data):
                step = self.dice.choice([700, 4096, 65536, 1 << 20])
                at += file.write(data[at : at + step])
            if sync:
                os.fsync(file.fileno())
        self.closed(name, data)
        if sync:
            self.say("synced", name)

    def closed(self, name: str, data: bytes) -> None:
        self.digests[name] = hashlib.sha256(data).hexdigest()
        self.say("closed", name, self.digests[name])
        self.names.append(name)

    def verify(self) -> None:
        """A file of those that are written down, as it is read now."""
        if not self.names:
            return
        name = self.dice.choice(self.names)
        found = hashlib.sha256((self.directory / name).read_bytes()).hexdigest()
        if found != self.digests[name]:
            raise AssertionError(f"{name} is read as something else than was written")

    def data(self) -> bytes:
        return self.dice.randbytes(self.dice.choice([1, 100, 5000, 70_000, 300_000, 3_000_000]))

    def step(self) -> None:
        getattr(self, self.dice.choice(STEPS))()

    def new(self) -> None:
        self.write(self.fresh(), self.data())

    def synced(self) -> None:
        self.write(self.fresh(), self.data(), sync=True)

    def copy(self) -> None:
        name, source = self.fresh(), self.dice.choice(self.sources)
        shutil.copy2(source, self.directory / name)
        self.closed(name, source.read_bytes())

    def pick(self) -> str:
        name = self.dice.choice(self.names)
        self.names.remove(name)
        self.say("going", name)
        return name

    def replace(self) -> None:
        """What editors do: write beside, rename over."""
        if not self.names:
            return
        name, data = self.pick(), self.data()
        beside = self.directory / self.fresh()
        with beside.open("wb", buffering=0) as file:
            file.write(data)
        beside.rename(self.directory / name)
        self.closed(name, data)

    def change(self) -> None:
        if not self.names:
            return
        name = self.pick()
        with (self.directory / name).open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for _ in range(5):
                file.seek(self.dice.randrange(size + 10_000))
                file.write(self.dice.randbytes(self.dice.randrange(1, 20_000)))
            file.seek(0)
            data = file.read()
        self.closed(name, data)

    def shrink(self) -> None:
        if not self.names:
            return
        name = self.pick()
        with (self.directory / name).open("r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.truncate(self.dice.randrange(size + 1))
            file.truncate(size)
            data = file.read()
        self.closed(name, data)

    def remove(self) -> None:
        if self.names:
            (self.directory / self.pick()).unlink()

    def database(self) -> None:
        """One committed row more."""
        connection = sqlite3.connect(self.directory / "rows.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, text TEXT)")
        cursor = connection.execute("INSERT INTO rows (text) VALUES (hex(randomblob(500)))")
        self.say("committed", cursor.lastrowid)
        connection.close()


    def git(self) -> None:
        """One commit more, of a few sources."""
        repository = self.directory / "repository"
        if not (repository / ".git" / "HEAD").exists():
            repository.mkdir(exist_ok=True)
            self.run_git("init", "-q")
        for lock in (repository / ".git").rglob("*.lock"):  # of one that a kill has ended
            lock.unlink(missing_ok=True)
        for source in self.dice.sample(self.sources, 5):
            shutil.copy(source, repository / self.fresh())
        self.run_git("add", "-A")
        self.run_git("-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-q", "-m", self.fresh())
        self.say("revision", self.run_git("rev-parse", "HEAD").strip())

    def run_git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", self.directory / "repository", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(errno.EIO, done.stderr)
        return done.stdout


def main(directory: str, journal: str, seed: str, source: str) -> None:
    load = Load(Path(directory), Path(journal), int(seed), Path(source))
    steps = int(os.environ.get("IBPFS_LOAD_STEPS", "1000000"))
    signal.signal(signal.SIGTERM, lambda *_: setattr(load, "is_told_to_end", True))
    load.say("begun")
    try:
        for number in range(steps):
            if load.is_told_to_end:
                break
            load.step()
            if number % 7 == 0:
                load.database()
            if number % 29 == 28:
                load.git()
    except OSError as error:
        if error.errno not in GONE or "IBPFS_LOAD_STEPS" in os.environ:
            raise
        load.say("failed", str(error))
    except sqlite3.Error as error:
        if "IBPFS_LOAD_STEPS" in os.environ:
            raise
        load.say("failed", str(error))
    load.say("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
