"""Snapshots of a volume: each is a pin in the ledger and a file of its own (`snapshot_file`).

Made: pin (unfinished), file, pin. Deleted: pin, file. So a crash leaves a pin that is unfinished, or a file without a
pin; both are taken away by the next owner.
"""

import logging
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from ibpfs.errors import InvalidArgument, NameExists, NoSpace, NotFound, VolumeError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.namespace import check_name
from ibpfs.exnode_store.pins import Pin
from ibpfs.exnode_store.schema import MAX_INO
from ibpfs.exnode_store.snapshot_file import Copy, SnapshotTree, put_in_place

_log = logging.getLogger(__name__)

#: How its rows in table pins are called: while the file is being made, and when it stands.
UNFINISHED, SNAPSHOT = "unfinished snapshot", "snapshot"
#: Above an inode's number in a node id stands the snapshot's; the last number is the directory of all of them.
MOST = (1 << 15) - 2
DIRECTORY = MOST + 1
_LOOKED_AT = 1000
#: Files of snapshots that are open at a time; each takes a connection of SQLite, and memory.
_MOST_OPEN = 8


def node(number: int, ino: int) -> int:
    """What the kernel, and st_ino, call an inode of a snapshot."""
    return number * MAX_INO + ino


class Snapshots:
    """One per open volume; `directory` is made when it is needed."""

    def __init__(self, db: Database, ledger: Ledger, directory: Path) -> None:
        self._db = db
        self._ledger = ledger
        self._directory = directory
        self._open: OrderedDict[int, SnapshotTree] = OrderedDict()  # the one that was asked for last is the last
        self._turn = trio.Lock()

    def recover(self) -> None:
        """Take away what an owner before left half made, or half deleted."""
        for pin in self._ledger.pins(UNFINISHED):
            self._ledger.drop_pin(pin.id)
        known = {self._path(pin.id).name for pin in self.all()}
        for path in self._directory.glob("*") if self._directory.is_dir() else ():
            if path.name not in known:
                _remove(path)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    # Finding

    def all(self) -> list[Pin]:
        """Oldest first."""
        return self._ledger.pins(SNAPSHOT)

    def files(self) -> dict[str, Path]:
        """Where the file of each belongs, by the number of the snapshot; one that was lost may come back."""
        return {str(pin.id): self._path(pin.id) for pin in self.all()}

    def find(self, name: str) -> Pin:
        """NotFound."""
        for pin in self.all():
            if pin.name == name:
                return pin
        raise NotFound(f"there is no snapshot {name}")

    def tree(self, number: int) -> SnapshotTree:
        """To be used at once: it may be closed while the caller waits. NotFound; VolumeError when its file is missing
        or damaged."""
        known = self._open.get(number)
        if known is None:
            pin = next((one for one in self.all() if one.id == number), None)
            if pin is None:
                raise NotFound(f"there is no snapshot {number} any more")
            known = self._open[number] = SnapshotTree(self._path(number), number, pin.name, self._db, self._ledger)
        self._open.move_to_end(number)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return known

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}.sqlite"

    # Making and deleting

    async def create(self, name: str) -> dict[str, Any]:
        """Keep what is committed now. InvalidArgument, NameExists, NoSpace, VolumeError: then there is none."""
        check_name(name.encode("utf-8", "surrogateescape"))
        async with self._turn:
            if any(pin.name == name for pin in self.all()):
                raise NameExists(f"there is a snapshot {name} already")
            self._directory.mkdir(mode=0o700, exist_ok=True)
            pin = self._ledger.add_pin(UNFINISHED, name, self._free_number())
            try:
                await self._copy(pin)
                self._ledger.change_pin(pin.id, SNAPSHOT)
                await self._db.sync()
            except BaseException:
                self._take_away(pin)
                raise
        return self.describe(pin)

    async def _copy(self, pin: Pin) -> None:
        made = self._directory / f"{pin.id}.new"
        copy = Copy(made, self._db.path)
        self._db.readers += 1
        try:
            if copy.seq != pin.pinned:
                raise VolumeError(f"the copy is of commit {copy.seq}, the pin of {pin.pinned}")
            facts = {"features": "", "snapshot_created_at": repr(time.time()), "snapshot_name": pin.name}
            await trio.to_thread.run_sync(copy.finish, facts)
            await trio.to_thread.run_sync(put_in_place, made, self._path(pin.id))
        finally:
            copy.give_up()
            self._db.readers -= 1

    def _free_number(self) -> int:
        """One that was not used for long: the kernel may remember something of the last one."""
        used = {pin.id for pin in self.all()}
        last: int = self._db.value("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'pins'") or 0
        if last < MOST:
            return last + 1
        for number in range(1, MOST + 1):
            if number not in used:
                return number
        raise InvalidArgument(f"a volume has at most {MOST} snapshots")

    def _take_away(self, pin: Pin) -> None:
        try:
            self._ledger.drop_pin(pin.id)
        except (NoSpace, OSError) as error:
            _log.info("snapshot %s: is taken away by the next mount: %s", pin.name, error)
        _remove(self._path(pin.id))

    async def delete(self, name: str) -> None:
        """Forget it; what only it kept is released by and by. NotFound."""
        async with self._turn:
            pin = self.find(name)
            self._ledger.drop_pin(pin.id)
            await self._db.sync()
            opened = self._open.pop(pin.id, None)
            if opened is not None:
                opened.close()
            _remove(self._path(pin.id))

    # Telling

    def describe(self, pin: Pin) -> dict[str, Any]:
        """For whoever asks for a list; `trouble` when it cannot be read."""
        told: dict[str, Any] = {"name": pin.name, "number": pin.id, "seq": pin.pinned, "trouble": None}
        try:
            tree = self.tree(pin.id)
            return told | {"created_at": tree.created_at, "files": tree.files}
        except VolumeError as error:
            return told | {"created_at": None, "files": None, "trouble": str(error)}

    async def own_bytes(self) -> dict[int, int]:
        """Stored bytes that the deletion of one snapshot alone would release, by number."""
        pins = self.all()
        own = {pin.id: 0 for pin in pins}
        seqs = [pin.pinned for pin in pins]
        for rows in self._dead():
            for born, died, stored in rows:
                first = bisect_left(seqs, born)
                if bisect_left(seqs, died) == first + 1:
                    own[pins[first].id] += stored
            await trio.lowlevel.checkpoint()
        return own

    def _dead(self) -> Iterator[list[tuple[int, int, int]]]:
        last = 0
        while rows := self._db.rows(
            "SELECT id, born, died, stored_length FROM slices WHERE died IS NOT NULL AND id > ? AND segment NOT IN"
            " (SELECT segment FROM held_segments) ORDER BY id LIMIT ?",
            (last, _LOOKED_AT),
        ):
            last = rows[-1][0]
            yield [row[1:] for row in rows]


def _remove(path: Path) -> None:
    """A file that nobody needs; the next owner tries again."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.info("%s: cannot be removed: %s", path, error.strerror)
