"""The checkpoint log in use, as its writer knows it: how far it is, and what each page was then.

Kept in VOLUME/run/checkpoint beside the store, so that the next owner goes on with increments; lost, it costs a full
checkpoint and nothing else.
"""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from ibpfs.exnode_store.checkpoints.commits import Commit, digest_of
from ibpfs.exnode_store.checkpoints.pages import PageDigests, changed
from ibpfs.exnode_store.checkpoints.record_log import COMMIT, PAGES, LogSeal
from ibpfs.exnode_store.frozen import Image

#: Room in a new log for increments: as much as the full checkpoint takes, and at least this.
_LEAST_ROOM = 512 * 1024


@dataclass(frozen=True)
class Generation:
    """A log that begins with a full checkpoint. `number` is its next record's, `previous` its last commit's digest."""

    log: bytes
    number: int
    length: int
    previous: bytes
    pages: PageDigests

    def save(self, path: Path) -> None:
        told = {"log": self.log.hex(), "number": self.number, "length": self.length, "previous": self.previous.hex(),
                "page_size": self.pages.page_size}  # fmt: skip
        temporary = path.with_suffix(".new")
        temporary.write_bytes(json.dumps(told).encode() + b"\n" + self.pages.digests)
        temporary.replace(path)


def load_generation(path: Path, seed: int) -> Generation | None:
    """What the last owner left; None when there is nothing sensible."""
    try:
        line, _, digests = path.read_bytes().partition(b"\n")
        told = json.loads(line)
        pages = PageDigests(seed, int(told["page_size"]), digests)
        return Generation(bytes.fromhex(told["log"]), int(told["number"]), int(told["length"]),
                          bytes.fromhex(told["previous"]), pages)  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def size_for(pages: int, page_size: int) -> int:
    """Of the allocation for a log that begins with so many pages: they shrink to a third, or so, and hardly grow."""
    full = pages * page_size * 5 // 8
    return full + max(full, _LEAST_ROOM)


class Draft:
    """A checkpoint that is being written: sealed records in a file without a name, to be appended to a log."""

    def __init__(self, seal: LogSeal, start: Generation, directory: Path) -> None:
        self._seal = seal
        self._start = start
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by `close`)
        self.length = 0
        self.number = start.number
        self.pages = PageDigests(start.pages.seed, start.pages.page_size)
        self._content = hashlib.sha256()

    def put(self, data: bytes) -> None:
        self._file.write(data)
        self.length += len(data)

    def add_pages(self, image: Image, most: int) -> bool:
        """Seal the pages that differ; False when they do not fit into `most` bytes. To be run in a thread."""
        before = self._start.pages
        if before.page_size != image.page_size:
            before = PageDigests(before.seed, image.page_size)
        self.pages.page_size = image.page_size
        for batch in changed(image, before, self.pages):
            record = self._seal.seal(PAGES, self.number, batch)
            if self.length + len(record) > most:
                return False
            self._content.update(record)
            self.put(record)
            self.number += 1
        return True

    @property
    def content(self) -> bytes:
        return self._content.digest()

    def finish(self, commit: Commit) -> tuple[bytes, Generation]:
        """(the commit record, the log as it is once all of this is appended)."""
        body = commit.dump()
        self.put(self._seal.seal(COMMIT, self.number, body))
        self._file.flush()
        after = replace(
            self._start, number=self.number + 1, length=self._start.length + self.length, previous=digest_of(body),
            pages=self.pages,
        )  # fmt: skip
        return body, after

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        self._file.close()
