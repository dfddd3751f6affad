"""Reading record logs back with read capabilities alone: the root's last word, and the checkpoints of a log."""

import hashlib
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ibpfs.errors import DataError, IbpfsError
from ibpfs.exnode_store.checkpoints.commits import Commit, Place, digest_of, parse_commit, parse_places
from ibpfs.exnode_store.checkpoints.record_log import (
    COMMIT,
    HEAD_SIZE,
    HEADER_SIZE,
    PAGES,
    PLACE,
    SUCCESSOR,
    DamagedLog,
    LogSeal,
    Record,
    parse_head,
    parse_header,
)

#: Bytes of a root, at most; a larger one is not ours.
MOST_ROOT = 8 * 1024 * 1024


@dataclass(frozen=True)
class LogCopy:
    """`load(offset, length)` gives exactly so many bytes. It raises an IbpfsError where there are none."""

    label: str  # the depot's address
    load: Callable[[int, int], Awaitable[bytes]]


@dataclass
class Told:
    """What a root says: its latest record of where to go on."""

    number: int
    kind: int
    log: bytes
    places: list[Place]
    body: bytes


async def read_head(copy: LogCopy) -> tuple[bytes, bytes, int]:
    """(log id, text, where the records begin). DamagedLog, or what `load` raises."""
    log, length = parse_head(await copy.load(0, HEAD_SIZE))
    return log, await copy.load(HEAD_SIZE, length), HEAD_SIZE + length


async def find_start(copies: Iterable[LogCopy], log: bytes, notes: list[str]) -> int | None:
    """Where the records of a log begin, by the first copy that has it; None: none has. `notes` gets why not."""
    for copy in copies:
        try:
            found, _, start = await read_head(copy)
        except IbpfsError as error:
            notes.append(f"{copy.label}: {error}")
            continue
        if found == log:
            return start
    return None


async def find_size(copy: LogCopy, most: int) -> int:
    """How many bytes there are, with nothing but the right to read."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        try:
            await copy.load(middle, 1)
        except IbpfsError:
            high = middle
        else:
            low = middle + 1
    return low


def words(seal: LogSeal, data: bytes) -> list[Told]:
    """The sound records of a root that say where to go on, the latest last; whatever else is there is passed over."""
    found = []
    for record in seal.records(data, 0):
        if record.kind in (PLACE, SUCCESSOR):
            try:
                log, places = parse_places(record.body)
            except DamagedLog:
                continue
            found.append(Told(record.number, record.kind, log, places, record.body))
    return sorted(found, key=lambda one: one.number)


@dataclass
class Found:
    """What a log holds: `commits` in order, with their records as they were sealed; and why it ends there."""

    commits: list[tuple[Commit, bytes]] = field(default_factory=list)
    stop: int = 0  # offset behind the last commit
    damage: str = ""  # "" = it simply ends
    silent: set[str] = field(default_factory=set)


#: Gets a commit, and its batches of pages one by one.
Apply = Callable[[Commit, Iterable[bytes]], Awaitable[None]]


class Batches:
    """The pages of a checkpoint whose commit has not been read yet, in a file without a name: they may be many."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by `close`)
        self._lengths: list[int] = []

    def add(self, batch: bytes) -> None:
        self._file.write(batch)
        self._lengths.append(len(batch))

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length)

    def clear(self) -> None:
        self._lengths.clear()
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        self._file.close()


class LogReader:
    """Reads the records of one log one by one, each from the first copy that has it sound."""

    def __init__(self, copies: Sequence[LogCopy], seal: LogSeal) -> None:
        self._copies = list(copies)
        self._seal = seal
        self.silent: set[str] = set()

    async def record(self, at: int) -> tuple[Record, bytes] | None:
        """The record there and its sealed bytes; None where every copy ends. DamagedLog."""
        damage = ""
        for copy in list(self._copies):
            try:
                raw = await copy.load(at, HEADER_SIZE)
            except IbpfsError:
                self.silent.add(copy.label)
                continue
            try:
                header = parse_header(raw)
                sealed = await copy.load(at + HEADER_SIZE, header.length)
                body = self._seal.open(header, sealed)
            except IbpfsError as error:
                damage = f"{copy.label}: {error}"
                continue
            self._copies.remove(copy)
            self._copies.insert(0, copy)  # who served is asked first
            stop = at + HEADER_SIZE + header.length
            return Record(header.kind, header.number, body, stop), raw + sealed
        if damage:
            raise DamagedLog(damage)
        return None

    async def read_into(self, start: int, apply: Apply, directory: Path) -> Found:
        """Follow the chain from where a full checkpoint begins. `apply` gets each commit and its batches of pages, once
        they are complete; until then they are in a file in `directory`."""
        batches = Batches(directory)
        try:
            return await self.read(start, apply, batches)
        finally:
            batches.close()

    async def read(self, start: int, apply: Apply | None = None, batches: Batches | None = None, *,
                   previous: bytes | None = None) -> Found:  # fmt: skip
        """Follow the chain from an offset. `previous`: the digest of the commit before; None: the log begins with a
        full one."""
        found, at, number = Found(stop=start), start, None
        is_whole = True
        content = hashlib.sha256()
        try:
            while (read := await self.record(at)) is not None:
                record, raw = read
                if number is not None and record.number != number + 1:
                    raise DamagedLog(f"record {number + 1} is missing")
                number, at = record.number, record.stop
                if record.kind == PAGES:
                    content.update(raw)
                    is_whole = False
                    if batches is not None:
                        batches.add(record.body)
                elif record.kind == COMMIT:
                    commit = parse_commit(record.body)
                    _check(commit, content.digest(), previous)
                    if apply is not None and batches is not None:
                        await apply(commit, batches)
                        batches.clear()
                    previous = digest_of(record.body)
                    found.commits.append((commit, record.body))
                    found.stop = at
                    is_whole, content = True, hashlib.sha256()
                else:
                    raise DamagedLog(f"record {record.number} is of an unknown kind")
            if not is_whole:
                found.damage = "the last checkpoint was not finished"
        except DataError as error:
            found.damage = str(error)
        found.silent = self.silent
        return found


def _check(commit: Commit, content: bytes, previous: bytes | None) -> None:
    if commit.content != content:
        raise DamagedLog("a commit does not fit the pages before it")
    if previous is None:
        if not commit.full:
            raise DamagedLog("the log does not begin with a full checkpoint")
    elif commit.previous != previous:
        raise DamagedLog("a commit does not follow the one before it")
