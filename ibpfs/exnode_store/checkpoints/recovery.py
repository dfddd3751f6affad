"""A store that comes back from depots: root, checkpoint log, database file; with nothing but a recovery string."""

import json
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.depot.embedded import socket_of
from ibpfs.errors import DataError, IbpfsError, VolumeError, WrongKey
from ibpfs.exnode_store.checkpoints import pages
from ibpfs.exnode_store.checkpoints.commits import Commit, Place
from ibpfs.exnode_store.checkpoints.reading import (
    MOST_ROOT,
    Found,
    LogCopy,
    LogReader,
    Told,
    find_size,
    find_start,
    read_head,
    words,
)
from ibpfs.exnode_store.checkpoints.record_log import SUCCESSOR, DamagedLog, LogSeal
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.keys import open_slots, unwrap_checkpoint_key
from ibpfs.exnode_store.ledger_rows import unpack_key

#: Seconds that a depot has for one answer.
_PATIENCE = 20.0
#: Roots one after the other that are followed; each holds a thousand records.
_MOST_ROOTS = 100


@dataclass
class Recovered:
    """The database file is complete up to `commit`. `notes` are lines for a person, `given_up` the checkpoint logs that
    a root names and that were not read, or not to an end that all copies agree on; `word` is the root's last number."""

    commit: Commit
    record: bytes = field(repr=False)  # the commit, as it was sealed
    notes: list[str] = field(default_factory=list)
    given_up: list[bytes] = field(default_factory=list)
    word: int = 0


class Recoverer:
    """Reads with the capabilities that a string, and then the root, gives. `depot`: the embedded depot's store."""

    def __init__(self, recovery: Recovery, depot: Path, stack: AsyncExitStack) -> None:
        self._recovery = recovery
        self._depot = depot
        self._stack = stack
        self._clients: dict[str, DepotClient] = {}
        self.notes: list[str] = []
        self._key = b""

    async def recover(self, file: BinaryIO) -> Recovered:
        """Write the newest database file that can be had. VolumeError when there is none."""
        tolds, key = await self._read_roots()
        self._key = key
        others: list[Told] = []
        for told in sorted(tolds, key=lambda one: -one.number):
            found = await self._read_log(told, key, file)
            if found.commits:
                commit, record = found.commits[-1]
                file.truncate(commit.pages * commit.page_size)
                file.flush()
                silent = await self._silent(told)
                self.notes += [f"{place} does not answer: a later checkpoint that it may have is given up"
                               for place in silent]  # fmt: skip
                given_up = {one.log for one in tolds if one is not told or silent or found.damage}
                self.notes += [f"the newer checkpoint on {' and '.join(map(_label, one.places))} is given up: it is not"
                               " looked at again, even if it can be read one day" for one in others]  # fmt: skip
                return Recovered(commit, record, self.notes, sorted(given_up), max(one.number for one in tolds))
            others.append(told)
            self.notes.append(f"the newest checkpoint cannot be read ({found.damage or 'its depots do not answer'})"
                              ": an older one is looked for")  # fmt: skip
        raise VolumeError("no checkpoint can be read from the depots that the recovery string names: "
                          + "; ".join(self.notes[-3:]))  # fmt: skip

    # The root

    async def _read_roots(self) -> tuple[list[Told], bytes]:
        tolds: list[Told] = []
        key = b""
        for place in self._recovery.places:
            try:
                told, key = await self._follow(place)
                tolds += told
            except WrongKey:
                raise
            except IbpfsError as error:
                self.notes.append(f"{place.address or 'the embedded depot'}: {error}")
        if not tolds:
            raise VolumeError("no depot that the recovery string names has the root of the checkpoints: "
                              + "; ".join(self.notes))  # fmt: skip
        best: dict[bytes, Told] = {}
        for one in tolds:
            if one.log not in best or best[one.log].number < one.number:
                best[one.log] = one
        return list(best.values()), key

    async def _follow(self, place: Place) -> tuple[list[Told], bytes]:
        told, key = await self._read_root(place)
        for _ in range(_MOST_ROOTS):
            if told[-1].kind != SUCCESSOR:
                return told, key
            for following in told[-1].places:
                try:
                    told, key = await self._read_root(following)
                    break
                except IbpfsError as error:
                    self.notes.append(f"{following.address}: {error}")
            else:
                return told[:-1], key
        raise DamagedLog("the root leads from one log to the next without end")

    async def _read_root(self, place: Place) -> tuple[list[Told], bytes]:
        """All that a root says, in order, and the key of the checkpoints."""
        copy = self._copy(place)
        log, text, start = await read_head(copy)
        key = self._open(text)
        size = await find_size(copy, MOST_ROOT)
        data = await copy.load(start, size - start) if size > start else b""
        tolds = words(LogSeal(key, log), data)
        if not tolds:
            raise DamagedLog("the root of the checkpoints says nothing")
        return tolds, key

    def _open(self, text: bytes) -> bytes:
        try:
            told = json.loads(text)
            uuid, slots, wrapped = bytes.fromhex(told["uuid"]), list(told["slots"]), str(told["key"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DamagedLog("the head of the root makes no sense") from None
        return unwrap_checkpoint_key(open_slots(slots, [], "recovery", self._recovery.secret, uuid), wrapped, uuid)

    async def recover_snapshot(self, log: bytes, places: list[Place], file: BinaryIO) -> None:
        """Write a snapshot's file. DataError when it cannot be had whole."""
        found = await self._read_log(Told(0, 0, log, places, b""), self._key, file)
        if not found.commits:
            raise DataError(found.damage or "its depots do not answer")
        commit = found.commits[-1][0]
        file.truncate(commit.pages * commit.page_size)

    # The checkpoint log

    async def _read_log(self, told: Told, key: bytes, file: BinaryIO) -> Found:
        copies = [self._copy(place) for place in told.places]
        start = await find_start(copies, told.log, self.notes)
        if start is None:
            return Found(damage="no depot has its log")

        async def apply(commit: Commit, batches: Iterable[bytes]) -> None:
            for batch in batches:
                pages.apply(batch, commit.page_size, file)

        found = await LogReader(copies, LogSeal(key, told.log)).read_into(start, apply, Path(file.name).parent)
        if found.damage and found.commits:
            self.notes.append(f"what follows the last whole checkpoint is left out ({found.damage})")
        return found

    async def _silent(self, told: Told) -> list[str]:
        """Of the copies of a log that was read, those that nobody gives: they may hold more."""
        silent = []
        for copy in map(self._copy, told.places):
            try:
                await read_head(copy)
            except IbpfsError:
                silent.append(copy.label)
        return silent

    def _copy(self, place: Place) -> LogCopy:
        return LogCopy(_label(place), partial(self._load, place))

    async def _load(self, place: Place, offset: int, length: int) -> bytes:
        client = self._client(place)
        try:
            with trio.fail_after(_PATIENCE):
                return bytes(await client.load(unpack_key(place.read_key), offset, length))
        except trio.TooSlowError:
            raise DataError(f"no answer for {_PATIENCE:.0f} s") from None

    def _client(self, place: Place) -> DepotClient:
        address = f"unix:{socket_of(self._depot)}" if place.embedded else place.address
        if address not in self._clients:
            pin = bytes.fromhex(place.pin) if place.pin and not place.embedded else None
            client = DepotClient(Address.parse(address), fingerprint=pin)
            self._stack.push_async_callback(client.aclose)
            self._clients[address] = client
        return self._clients[address]


def _label(place: Place) -> str:
    return place.address or "the embedded depot"


@asynccontextmanager
async def recovering(recovery: Recovery, depot: Path) -> AsyncIterator[Recoverer]:
    async with AsyncExitStack() as stack:
        yield Recoverer(recovery, depot, stack)


def check_file(path: Path) -> None:
    """VolumeError when a database file is not whole."""
    connection = sqlite3.connect(path)
    try:
        said = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        said = (str(error),)
    finally:
        connection.close()
    if said != ("ok",):
        raise VolumeError(f"the store that came back is damaged: {said[0]}")
