"""Snapshots' files on depots: each in a record log of its own, as a full checkpoint that stays."""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.checkpoints import pages
from ibpfs.exnode_store.checkpoints.commits import NO_DIGEST, Commit
from ibpfs.exnode_store.checkpoints.generation import Draft, Generation
from ibpfs.exnode_store.checkpoints.log_rows import SNAPSHOT, Copy, LogRows
from ibpfs.exnode_store.checkpoints.logs import WANTED, Logs
from ibpfs.exnode_store.checkpoints.pages import PageDigests
from ibpfs.exnode_store.checkpoints.reading import LogCopy, LogReader, find_start
from ibpfs.exnode_store.checkpoints.record_log import LogSeal
from ibpfs.exnode_store.checkpoints.roots import Roots, epoch_of
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.frozen import Image
from ibpfs.exnode_store.snapshot_file import put_in_place

_log = logging.getLogger(__name__)

_MAGIC = b"SQLite format 3\0"
_WITHOUT_END = 1 << 62


class Retained:
    """Of one volume whose checkpoint key is known."""

    def __init__(self, db: Database, rows: LogRows, logs: Logs, roots: Roots, key: bytes, directory: Path) -> None:
        self._db = db
        self._rows = rows
        self._logs = logs
        self._roots = roots
        self._key = key
        self._directory = directory

    async def follow(self, files: Mapping[str, Path], leaving: Sequence[Copy]) -> None:
        """See to it that the depots have just these, by name, and let go of copies that leave and are made up."""
        self._rows.drop([copy for copy in self._rows.copies(SNAPSHOT) if copy.name not in files])
        for name, path in files.items():
            try:
                await self._keep(name, path, leaving)
            except (DepotError, DepotUnreachable, DataError, NoSpace, OSError) as error:
                _log.info("snapshot %s is not on the depots yet: %s", name, error)

    async def _keep(self, name: str, path: Path, leaving: Sequence[Copy]) -> None:
        length = max((copy.length for copy in self._copies(name)), default=0)
        if not length:
            self._rows.drop(self._copies(name))
            await self._store(name, path)
            return
        if len(self._logs.staying(self._whole(name, length))) < WANTED:
            await self._logs.keep(partial(self._copies, name), length)
        if self._logs.staying(self._whole(name, length)):
            gone = {copy.id for copy in leaving}
            self._rows.drop([copy for copy in self._copies(name) if copy.id in gone])
        if not await trio.Path(path).exists():
            await self._bring_back(path, self._logs.answering(self._whole(name, length)))

    async def _bring_back(self, path: Path, copies: Sequence[Copy]) -> None:
        """The file was lost, or the depots that have it were away when the volume was recovered."""
        if not copies:
            return
        log, notes = copies[0].log, list[str]()
        readers = [LogCopy(f"depot {copy.depot}", partial(self._logs.load, copy)) for copy in copies]
        start = await find_start(readers, log, notes)
        if start is None:
            raise DataError(f"it does not come back: {'; '.join(notes)}")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        made = path.with_suffix(".new")

        async def write(commit: Commit, batches: Iterable[bytes]) -> None:
            await trio.to_thread.run_sync(_write_file, made, commit, batches)

        try:
            found = await LogReader(readers, LogSeal(self._key, log)).read_into(start, write, path.parent)
            if found.damage or not found.commits:
                raise DataError(f"it does not come back: {found.damage or 'its depots do not answer'}")
            put_in_place(made, path)
        finally:
            made.unlink(missing_ok=True)
        _log.info("%s was lost and came back from the depots", path)

    def _copies(self, name: str) -> list[Copy]:
        return [copy for copy in self._rows.copies(SNAPSHOT) if copy.name == name]

    def _whole(self, name: str, length: int) -> list[Copy]:
        return [copy for copy in self._copies(name) if copy.length == length]

    async def _store(self, name: str, path: Path) -> None:
        log = os.urandom(16)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            image = image_of(descriptor, path)
            start = Generation(log, 1, 0, NO_DIGEST, PageDigests(0, image.page_size))
            draft = Draft(LogSeal(self._key, log), start, self._directory)
            try:
                draft.put(self._roots.head(log))
                await trio.to_thread.run_sync(draft.add_pages, image, _WITHOUT_END)
                draft.finish(self._commit(draft, image))
                await self._logs.make(log, SNAPSHOT, draft.length, WANTED, (), name)
                done = await self._logs.append(self._copies(name), draft.read, draft.length)
                self._rows.acknowledged([(copy.id, draft.length) for copy in done])
            finally:
                draft.close()
        finally:
            os.close(descriptor)

    def _commit(self, draft: Draft, image: Image) -> Commit:
        return Commit(
            volume=self._db.facts["uuid"], epoch=epoch_of(self._db), writer=self._db.facts["checkpoint_writer"],
            seq=image.seq, versions={}, previous=NO_DIGEST, full=True, content=draft.content,
            page_size=image.page_size, pages=image.pages, files=image.files, at=time.time(),
        )  # fmt: skip


def _write_file(made: Path, commit: Commit, batches: Iterable[bytes]) -> None:
    with made.open("wb") as file:
        made.chmod(0o600)
        for batch in batches:
            pages.apply(batch, commit.page_size, file)
        file.truncate(commit.pages * commit.page_size)
        file.flush()
        os.fsync(file.fileno())


def image_of(descriptor: int, path: Path) -> Image:
    """A database file that nobody writes any more. DataError when it is none."""
    head = os.pread(descriptor, 18, 0)
    size = int.from_bytes(head[16:18], "big")
    size = 65536 if size == 1 else size
    if head[:16] != _MAGIC or not 512 <= size <= 65536:
        raise DataError(f"{path}: not a database file")
    return Image(descriptor, size, os.fstat(descriptor).st_size // size, 0, 0)
