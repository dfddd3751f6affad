"""Holding a mount to what a load wrote down, and the stored bytes to their rules."""

import hashlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ibpfs.cache.spool_file import FILE_HEADER_SIZE
from ibpfs.exnode_store.sealing import HEADER, FrameError, parse_header
from tests.mounted.running import run
from tests.mounted.volumes import Volume, allocation_files

ALLOCATION_HEADER = 4096
_SPOOL_FILE = struct.Struct(">8sI16s16sI")
_SPOOL_RECORD = struct.Struct(">4sQI")


class Promises:
    """One journal, and the loads that fill it."""

    def __init__(self, journal: Path, source: Path) -> None:
        self.journal = journal
        self.source = source
        journal.touch()

    def fresh(self) -> "Promises":
        """An empty journal beside this one."""
        number = len(list(self.journal.parent.iterdir()))
        return Promises(self.journal.with_name(f"journal{number}"), self.source)

    def start(self, directory: Path, seed: int, steps: int | None = None) -> subprocess.Popen[bytes]:
        env = dict(os.environ) if steps is None else {**os.environ, "IBPFS_LOAD_STEPS": str(steps)}
        return subprocess.Popen(
            [sys.executable, Path(__file__).with_name("load.py"), directory, self.journal, str(seed), self.source],
            stdin=subprocess.DEVNULL, env=env,
        )  # fmt: skip

    def failures(self) -> list[str]:
        """What calls failed with since the last load began."""
        failed: list[str] = []
        for line in self.journal.read_text().splitlines():
            what, *words = json.loads(line)
            failed = [] if what == "begun" else failed + words if what == "failed" else failed
        return failed

    def begun(self) -> int:
        """How many loads have."""
        return sum(json.loads(line)[0] == "begun" for line in self.journal.read_text().splitlines())

    def synced(self) -> int:
        """How many files had an fsync that returned."""
        return sum(json.loads(line)[0] == "synced" for line in self.journal.read_text().splitlines())

    def read(self) -> tuple[dict[str, str], set[int], set[str]]:
        """What must be there: files by name with their digests, rows of the database, git's commits."""
        files: dict[str, str] = {}
        rows: set[int] = set()
        revisions: set[str] = set()
        for line in self.journal.read_text().splitlines():
            what, *words = json.loads(line)
            if what == "closed":
                files[words[0]] = words[1]
            elif what == "going":
                files.pop(words[0], None)
            elif what == "committed":
                rows.add(words[0])
            elif what == "revision":
                revisions.add(words[0])
        return files, rows, revisions

    def check(self, directory: Path) -> int:
        """Compare; returns how many files were held to their promise."""
        files, rows, revisions = self.read()
        wrong = [(name, found) for name, digest in files.items() if (found := digest_of(directory / name)) != digest]
        assert not wrong, f"{len(wrong)} of {len(files)} closed files are not what was written: {wrong[:5]}"
        if rows:
            self._check_rows(directory / "rows.sqlite", rows)
        if revisions:
            self._check_repository(directory / "repository", revisions)
        return len(files)

    @staticmethod
    def _check_repository(path: Path, revisions: set[str]) -> None:
        run("git", "-C", path, "fsck", "--full")
        (path / ".git" / "index.lock").unlink(missing_ok=True)
        reached = set(run("git", "-C", path, "rev-list", "HEAD").stdout.split())
        assert revisions <= reached, f"commits are gone: {sorted(revisions - reached)[:3]}"

    @staticmethod
    def _check_rows(path: Path, rows: set[int]) -> None:
        connection = sqlite3.connect(path)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            missing = rows - {row for (row,) in connection.execute("SELECT n FROM rows")}
            assert not missing, f"committed rows are gone: {sorted(missing)[:10]}"
        finally:
            connection.close()


def digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


class Sealed:
    """Everything that was ever seen sealed under a (key, nonce): twice means the same bytes."""

    def __init__(self) -> None:
        self._seen: dict[bytes, bytes] = {}
        self.slices = self.records = 0

    def look(self, volume: Volume) -> None:
        """While no mount runs. The depot may still release allocations."""
        for path in allocation_files(volume.root / "depot"):
            with suppress(FileNotFoundError):
                self._slices(path.read_bytes()[ALLOCATION_HEADER:])
        for path in volume.spool_files():
            self._spool(path.read_bytes())

    def _slices(self, stored: bytes) -> None:
        at = 0
        while at + HEADER.size <= len(stored):
            try:
                form = parse_header(stored[at : at + HEADER.size], bytes(16))
            except FrameError:
                return
            run = stored[at : at + form.stored_length]
            if len(run) < form.stored_length:
                return  # an append that a kill cut off
            self.slices += self._note(b"slice" + form.slice_id, run)
            at += form.stored_length

    def _spool(self, raw: bytes) -> None:
        if len(raw) < FILE_HEADER_SIZE:
            return
        file_id = _SPOOL_FILE.unpack_from(raw)[3]
        at = FILE_HEADER_SIZE
        while at + _SPOOL_RECORD.size <= len(raw):
            marker, number, length = _SPOOL_RECORD.unpack_from(raw, at)
            if not any(marker):
                return  # zeros that were laid out ahead
            body = raw[at + _SPOOL_RECORD.size : at + _SPOOL_RECORD.size + length]
            if len(body) < length:
                return
            self.records += self._note(b"record" + file_id + number.to_bytes(8, "big"), body)
            at += _SPOOL_RECORD.size + length

    def _note(self, name: bytes, sealed: bytes) -> bool:
        digest = hashlib.sha256(sealed).digest()
        known = self._seen.setdefault(name, digest)
        assert known == digest, "one (key, nonce) has sealed two different things"
        return known is digest

