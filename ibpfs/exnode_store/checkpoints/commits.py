"""What ends a checkpoint: the record that says what it is, what came before, and what it does not hold."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibpfs.exnode_store.checkpoints.record_log import DamagedLog

NO_DIGEST = bytes(32)
#: Files that are named as having bytes in the spool alone; those that were written last may not be.
MOST_DIRTY = 2_000
#: Runs of such bytes that are told of a file; where there are more, one from the first to the last.
MOST_RUNS = 16


@dataclass(frozen=True)
class Dirty:
    """A file of which the writer's machine had bytes that were on no depot: how many, and which runs of it."""

    ino: int
    size: int
    runs: Sequence[tuple[int, int]]

    def dump(self) -> list[Any]:
        runs = self.runs if len(self.runs) <= MOST_RUNS else [(self.runs[0][0], self.runs[-1][1])]
        return [self.ino, self.size, [list(run) for run in runs]]


@dataclass(frozen=True)
class Commit:
    """One checkpoint."""

    volume: str
    epoch: int
    writer: str
    seq: int
    versions: Mapping[str, int]
    previous: bytes
    full: bool
    content: bytes  # SHA-256 of its sealed page records, one behind the other
    page_size: int
    pages: int
    files: int
    at: float
    dirty: Sequence[Dirty] = ()

    @property
    def number(self) -> int:
        """How many commits there are up to this one."""
        return sum(self.versions.values())

    def dump(self) -> bytes:
        table = self.__dict__ | {"previous": self.previous.hex(), "content": self.content.hex()}
        table["versions"] = dict(self.versions)
        table["dirty"] = [one.dump() for one in self.dirty[:MOST_DIRTY]]
        return json.dumps(table, sort_keys=True).encode()


def digest_of(record: bytes) -> bytes:
    """By which the next commit names this one."""
    return hashlib.sha256(record).digest()


def parse_commit(record: bytes) -> Commit:
    """The reverse of Commit.dump. DamagedLog."""
    try:
        table = json.loads(record)
        return Commit(
            volume=str(table["volume"]),
            epoch=int(table["epoch"]),
            writer=str(table["writer"]),
            seq=int(table["seq"]),
            versions={str(writer): int(count) for writer, count in table["versions"].items()},
            previous=bytes.fromhex(table["previous"]),
            full=bool(table["full"]),
            content=bytes.fromhex(table["content"]),
            page_size=_page_size(int(table["page_size"])),
            pages=int(table["pages"]),
            files=int(table["files"]),
            at=float(table["at"]),
            dirty=[
                Dirty(int(ino), int(size), [(int(start), int(stop)) for start, stop in runs])
                for ino, size, runs in table["dirty"]
            ],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedLog("a commit record makes no sense") from None


def _page_size(size: int) -> int:
    if not 512 <= size <= 65536 or size & (size - 1):
        raise ValueError
    return size


def is_behind(ours: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
    """Whether every commit of ours is among theirs."""
    return all(theirs.get(writer, 0) >= count for writer, count in ours.items())


@dataclass(frozen=True)
class Place:
    """Where a copy of a log is. `embedded`: on the volume's own depot, whose address is none of the network's."""

    address: str
    embedded: bool
    read_key: str  # 'KEY/TYPEKEY'
    pin: str = ""  # SHA-256 of the depot's certificate, in hex

    def __repr__(self) -> str:
        return f"<log on {self.address}>"


def dump_places(log: bytes, places: Sequence[Place]) -> bytes:
    listed = [[one.address, int(one.embedded), one.read_key, one.pin] for one in places]
    return json.dumps({"log": log.hex(), "places": listed}).encode()


def parse_places(record: bytes) -> tuple[bytes, list[Place]]:
    """(log id, its copies). DamagedLog."""
    try:
        table: dict[str, Any] = json.loads(record)
        places = [Place(str(at), bool(own), str(key), str(pin)) for at, own, key, pin in table["places"]]
        return bytes.fromhex(table["log"]), places
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedLog("a record of places makes no sense") from None
