"""The root: small logs on depots, each of which says where the newest checkpoint is. Its copies need not be alike."""

import json
import os
from collections.abc import Sequence
from functools import partial

from ibpfs.config import parse_config
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.checkpoints.commits import dump_places
from ibpfs.exnode_store.checkpoints.log_rows import ROOT, Copy, LogRows
from ibpfs.exnode_store.checkpoints.logs import WANTED, Logs
from ibpfs.exnode_store.checkpoints.reading import LogCopy, Told, read_head, words
from ibpfs.exnode_store.checkpoints.record_log import PLACE, SUCCESSOR, LogSeal, make_head
from ibpfs.exnode_store.database import Database

#: Of each allocation; a record takes some 600 bytes, and there is one per full checkpoint.
ROOT_SIZE = 1024 * 1024
#: Kept free for the word where the next log is.
_LAST_WORD = 8 * 1024


class Roots:
    """Of one volume whose checkpoint key is known."""

    def __init__(self, db: Database, rows: LogRows, logs: Logs, key: bytes) -> None:
        self._db = db
        self._rows = rows
        self._logs = logs
        self._key = key
        self._told: dict[int, bytes] = {}  # copy -> the places that it told last
        self.read: set[int] = set()  # copies that were looked at by this owner

    def head(self, log: bytes) -> bytes:
        return make_head(log, head_text(self._db))

    def unread(self) -> list[Copy]:
        """Copies that nobody has looked at, on depots that answer now."""
        return [one for one in self._logs.answering(self._rows.copies(ROOT)) if one.id not in self.read]

    async def look(self, copy: Copy) -> Told | None:
        """What a copy says last. DepotError, DepotUnreachable, DataError."""
        size = await self._logs.size(copy)
        if size:
            log, _, start = await read_head(LogCopy("", partial(self._logs.load, copy)))
            if log != copy.log:
                raise DataError("the allocation holds another log")
            said = words(LogSeal(self._key, log), await self._logs.load(copy, start, size - start))
            told = said[-1] if said else None
        else:
            told = None
        if size != copy.length:
            self._rows.acknowledged([(copy.id, size)])
        self.read.add(copy.id)
        if told is not None:
            self._told[copy.id] = told.body
        return told

    async def tell(self, checkpoint: Sequence[Copy]) -> int:
        """Let every copy say where the checkpoint log's copies are; return how many do now."""
        log = checkpoint[0].log
        body = dump_places(log, [self._rows.place(copy) for copy in checkpoint])
        newest = self._rows.in_use(ROOT)
        due = [copy for copy in newest if self._told.get(copy.id) != body]
        if due:
            await self._append(due, PLACE, body)
        return sum(self._told.get(copy.id) == body for copy in newest)

    async def _append(self, copies: Sequence[Copy], kind: int, body: bytes) -> None:
        record = LogSeal(self._key, copies[0].log).seal(kind, self._rows.next_root_number(), body)
        lengths = []
        for copy in copies:
            data = record if copy.length else self.head(copy.log) + record
            done = await self._logs.append([copy], lambda at, size, data=data: data[at : at + size], len(data))  # type: ignore[misc]
            if done:
                lengths.append((copy.id, copy.length + len(data)))
                self._told[copy.id] = body
                self.read.add(copy.id)
            else:  # how much it has now is not known
                self.read.discard(copy.id)
        if lengths:
            self._rows.acknowledged(lengths)

    async def prepare(self) -> None:
        """See to it that there are enough copies, each with room for another word.

        Before a checkpoint is taken: the store that comes back from it has to know them.
        """
        newest = self._rows.in_use(ROOT)
        if any(one.length > one.size - _LAST_WORD for one in newest):
            await self._succeed(newest)
            return
        lacking = WANTED - len(self._logs.staying(newest))
        if lacking > 0:
            log = newest[0].log if newest else os.urandom(16)
            try:
                made = await self._logs.make(log, ROOT, ROOT_SIZE, lacking, newest)
            except NoSpace:
                if not newest:
                    raise
                return
            if not made and not newest:
                raise DepotUnreachable("no depot took the root of the checkpoints")

    async def _succeed(self, full: Sequence[Copy]) -> None:
        log = os.urandom(16)
        if not await self._logs.make(log, ROOT, ROOT_SIZE, WANTED):
            raise DepotUnreachable("no depot takes a further root of the checkpoints")
        fresh = self._rows.in_use(ROOT)
        await self._append(full, SUCCESSOR, dump_places(log, [self._rows.place(copy) for copy in fresh]))

    def is_told_elsewhere(self, leaving: Sequence[Copy]) -> bool:
        """Whether copies that stay say what those that leave say."""
        gone = {copy.id for copy in leaving}
        staying = self._logs.staying(self._rows.in_use(ROOT))
        return any(copy.id in self._told and copy.id not in gone for copy in staying)


def epoch_of(db: Database) -> int:
    """The newest epoch of the volume's keys."""
    return max(int(entry["epoch"]) for entry in parse_config(db.facts["volume_toml"], db.path).epochs)


def head_text(db: Database) -> bytes:
    """How the recovery string's secret leads to the key of the checkpoints; all of it wrapped."""
    config = parse_config(db.facts["volume_toml"], db.path)
    slots = [{name: value for name, value in slot.items() if name != "kept"}
             for slot in config.slots if slot.get("kind") == "recovery"]  # fmt: skip
    told = {"uuid": config.uuid.hex(), "slots": slots, "key": db.facts["checkpoint_key_wrapped"]}
    return json.dumps(told).encode()
