"""Checkpoints of an open volume: increments at most a minute behind, a full one where a log begins, and the root."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.errors import DataError, NoSpace, VolumeError
from ibpfs.exnode_store.allocator import Allocator
from ibpfs.exnode_store.checkpoints.commits import NO_DIGEST, Commit, Dirty
from ibpfs.exnode_store.checkpoints.generation import Draft, Generation, load_generation, size_for
from ibpfs.exnode_store.checkpoints.log_rows import CHECKPOINT, ROOT, Copy, LogRows
from ibpfs.exnode_store.checkpoints.logs import WANTED, Logs
from ibpfs.exnode_store.checkpoints.pages import PageDigests
from ibpfs.exnode_store.checkpoints.record_log import LogSeal
from ibpfs.exnode_store.checkpoints.retained import Retained
from ibpfs.exnode_store.checkpoints.roots import Roots, epoch_of
from ibpfs.exnode_store.checkpoints.staleness import newer_commits
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.segments import LAST_COMMIT

_log = logging.getLogger(__name__)

#: Seconds after the first change that is on no depot until a checkpoint begins; it is to be there within 60.
INTERVAL = 40.0
#: The same where something deleted waits to be released, and where depots are short of room.
RELEASE_INTERVAL, _URGENT_INTERVAL = 10.0, 1.0
#: Seconds until a checkpoint that failed is tried again.
_RETRY = 10.0
_LOOK_EVERY = 0.5
#: How often, a second apart, it is tried to bring the checkpoints off a depot that somebody waits for.
_LEAVE_TRIES = 5
#: Seconds that a depot may be away before a copy elsewhere takes the place of its own.
_PATIENCE = 60.0
#: Seconds that depots have to say at once that they have a newer store; who says so later stops what is going on.
_CHECK = 1.5
#: A depot with less free than this is short of room, or with less than this share of what it has.
_SHORT, _SHORT_SHARE = 64 * 1024 * 1024, 20

#: What a checkpoint may fail with; it is tried again.
FAILURES = (DepotError, DepotUnreachable, DataError, NoSpace, OSError, sqlite3.OperationalError)


class Checkpoints:
    """One per open volume. Does nothing on a volume whose checkpoint key nobody has made yet."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, directory: Path) -> None:
        self._db = db
        self._depots = depots
        self._state = directory / "checkpoint"
        self._directory = directory
        self.rows = LogRows(db, ledger.now, partial(setattr, ledger, "orphans_waiting", True))
        self.logs = Logs(db, self.rows, depots, Allocator(db, ledger, depots))
        key = db.facts.get("checkpoint_key")
        self.roots = Roots(db, self.rows, self.logs, bytes.fromhex(key)) if key else None
        self._key = bytes.fromhex(key) if key else b""
        # The owner says which files are to be kept, too. Until then those that the depots have stay as they are.
        self.snapshots: Callable[[], Mapping[str, Path]] | None = None
        self.retained = Retained(db, self.rows, self.logs, self.roots, self._key, directory) if self.roots else None
        self._ledger = ledger
        self._turn = trio.Lock()
        self._generation: Generation | None = None
        self._attached = False
        self.dirty: Callable[[], Sequence[Dirty]] = tuple  # a mount says what only its spool holds
        self.commit_stored: Callable[[], None] = lambda: None  # and commits what depots have acknowledged
        self._covered = -1  # changes, not counting our own, that the last checkpoint holds
        self._untold: tuple[int, float] | None = None  # (seq, when) of one to which the root does not lead yet
        self._behind_since: float | None = None
        self._tried = -_RETRY
        self._lacking_since: float | None = None
        self.trouble = ""  # why the last one did not succeed
        self.stale = ""  # why this store must not go on: the depots have a newer one. Nothing is changed in it then
        self._is_open = False  # `check` has let it pass: whoever owns it works with it

    # What others ask

    @property
    def is_active(self) -> bool:
        """Whether the volume has a checkpoint on depots: then releases wait for the next."""
        return "checkpoint_seq" in self._db.facts

    @property
    def at(self) -> float | None:
        """When the last one was taken, in Unix seconds."""
        at = self._db.facts.get("checkpoint_at")
        return float(at) if at else None

    @property
    def behind(self) -> float | None:
        """Seconds since the first change that no checkpoint holds; 0 when there is none. None as long as it was not
        looked at what the last one of an earlier owner, who may have been killed, holds."""
        if not self._has_changes:
            return 0.0
        if self._behind_since is not None:
            return trio.current_time() - self._behind_since
        return None if self._covered < 0 else 0.0

    def releasable(self) -> int:
        """Orphans of commits up to this one may be released (I5); -1: none."""
        if self.stale:
            return -1
        if not self.is_active:
            return LAST_COMMIT
        return int(self._db.facts["checkpoint_seq"]) if self._attached else -1

    def roots_held(self) -> list[Copy]:
        """Copies of the root that are as they should be, as far as is known: not on depots that are away or leave."""
        unread = {copy.id for copy in self.roots.unread()} if self.roots is not None else set()
        return [copy for copy in self.logs.staying(self.rows.copies(ROOT)) if copy.id not in unread]

    @property
    def _changes(self) -> int:
        return self._db.seq - self.rows.own

    @property
    def _has_changes(self) -> bool:
        return self._covered != self._changes

    # Running

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await trio.sleep(_LOOK_EVERY)
            now = trio.current_time()
            if not self._has_changes:
                self._behind_since = None
            elif self._behind_since is None:
                self._behind_since = now
            if self.roots is None or self.stale:
                continue
            if self._is_due(now) or (now - self._tried >= _RETRY and self._is_misplaced(now)):
                if now - self._tried >= (_RETRY if self.trouble else 0.0):
                    await self.try_make()
            elif self.roots.unread():
                await self._try_attach()

    def _is_misplaced(self, now: float) -> bool:
        """Whether copies are on depots that are drained, or have been too few for a while."""
        if self._is_complete() or not self.is_active:
            self._lacking_since = None
        elif self._lacking_since is None:
            self._lacking_since = now
        return bool(self._leaving()) or (self._lacking_since is not None and now - self._lacking_since > _PATIENCE)

    def _is_due(self, now: float) -> bool:
        if self._behind_since is None:
            return False
        waited = now - self._behind_since
        return waited >= (INTERVAL if not self._is_waited_for() else
                          _URGENT_INTERVAL if self._is_short() else RELEASE_INTERVAL)  # fmt: skip

    def _is_waited_for(self) -> bool:
        """Whether something deleted waits for a checkpoint before it can be released."""
        if not (self.is_active and self._ledger.orphans_waiting):
            return False
        return self._db.value("SELECT 1 FROM orphans WHERE seq > ? LIMIT 1", (self.releasable(),)) is not None

    def _is_short(self) -> bool:
        return any(
            depot.free_bytes < max(_SHORT, depot.status.total_bytes // _SHORT_SHARE)
            for depot in self._depots
            if depot.status and depot.answers
        )

    async def try_make(self) -> str:
        """Make one if anything has changed; return why not, or ''."""
        self._tried = trio.current_time()
        try:
            await self.make()
        except (*FAILURES, VolumeError) as error:
            if self.trouble != str(error):
                _log.info("no checkpoint yet: %s", error)
            self.trouble = str(error) or type(error).__name__
        else:
            self.trouble = ""
        return self.trouble

    async def leave(self, depot: int) -> None:
        """Bring what it has of the checkpoints off a depot that is being drained. VolumeError when that cannot be."""
        for tries_left in reversed(range(_LEAVE_TRIES)):
            trouble = await self.try_make()
            if not any(copy.depot == depot for copy in self.rows.copies()):
                break
            if not tries_left or not self.logs.candidates(1, []):
                reason = trouble or "no other depot takes them"
                raise VolumeError(f"the checkpoints cannot be moved off it now: {reason}")
            await trio.sleep(1.0)
        await self.try_make()  # what was there is named by none any more

    async def _try_attach(self) -> None:
        try:
            async with self._turn:
                await self._attach()
        except (*FAILURES, VolumeError) as error:
            _log.info("the checkpoints are not looked at yet: %s", error)

    # Whether this store is the newest

    async def check(self, seconds: float = _CHECK) -> None:
        """Look at what the depots that answer within some time have. VolumeError when it is newer than this store."""
        if self.roots is None:
            return
        with trio.move_on_after(seconds):
            holders = {copy.depot for copy in self.rows.copies(ROOT)}
            while not all((depot := self._depots.find(one)) is None or depot.is_settled for one in holders):  # noqa: ASYNC110
                await trio.sleep(0.02)
            await self._try_attach()
        if self.stale:
            raise VolumeError(self.stale)
        self._is_open = True

    async def _attach(self) -> None:
        """Read what the root says, on every depot that answers and was not asked yet."""
        if self.stale:
            raise VolumeError(self.stale)
        assert self.roots is not None
        if self._generation is None:
            self._generation = load_generation(self._state, self._seed)
        for copy in self.roots.unread():
            try:
                told = await self.roots.look(copy)
            except CapabilityNotFound:
                _log.info("depot %d does not know the root of the checkpoints any more", copy.depot)
                self.rows.drop([copy])
                continue
            except (DepotError, DepotUnreachable, DataError) as error:
                _log.info("depot %d: the root of the checkpoints is not read: %s", copy.depot, error)
                self.roots.read.add(copy.id)
                continue
            if told is not None:
                await self._compare(told.log, told.places)
        if not self._attached and self.rows.copies(ROOT) and not self.roots.read:
            raise DepotUnreachable("no depot that holds the root of the checkpoints answers")
        self._attached = True

    async def _compare(self, log: bytes, places: Sequence[object]) -> None:
        newer = await newer_commits(self.rows, self.logs, self._key, log, places, self._generation)  # type: ignore[arg-type]
        if newer:
            self.stale = f"{self._db.path.parent}: older than the depots by {newer}: run ibpfs recover"
            _log.warning("%s%s", self.stale, "; nothing can be changed here any more" if self._is_open else "")
            raise VolumeError(self.stale)

    @property
    def _seed(self) -> int:
        return int(self._db.facts["digest_seed"], 16)

    # Making one

    async def make(self) -> None:
        """Let the depots have everything that is committed now. Raises one of FAILURES, or VolumeError."""
        if self.roots is None:
            return
        async with self._turn:
            await self._attach()
            await self.roots.prepare()
            self.commit_stored()
            if self.retained is not None and self.snapshots is not None:
                await self.retained.follow(self.snapshots(), self._leaving())
            if not self._has_changes and self._untold is None and self._is_complete() and not self._leaving():
                return
            if self._is_usable() and not self._has_changes:
                await self._tell()  # the copies alone are not as they should be
                return
            if not (self._is_usable() and await self._write(full=False)):
                await self._begin()
                if not await self._write(full=True):
                    raise NoSpace("the checkpoint grew while it was made")
            await self._tell()

    def _is_complete(self) -> bool:
        copies = self.logs.staying(self.rows.in_use(CHECKPOINT))
        return bool(copies) and len(copies) >= min(WANTED, len(copies) + len(self.logs.candidates(1, copies)))

    def _leaving(self) -> list[Copy]:
        """Copies on depots that are being drained."""
        return [one for one in self.rows.copies() if (depot := self._depots.find(one.depot)) and depot.role != "active"]

    def _usable(self) -> list[Copy]:
        if self._generation is None:
            return []
        return [one for one in self._of_log() if one.length == self._generation.length]

    def _is_usable(self) -> bool:
        return bool(self.logs.staying(self._usable()))

    async def _begin(self) -> None:
        """A log for a full checkpoint; its rows are in what it holds."""
        pages: int = self._db.value("PRAGMA page_count")
        size: int = self._db.value("PRAGMA page_size")
        log = os.urandom(16)
        if not await self.logs.make(log, CHECKPOINT, size_for(pages, size), WANTED):
            raise DepotUnreachable("no depot takes a checkpoint")
        previous = self._generation.previous if self._generation else NO_DIGEST
        self._generation = Generation(log, 1, 0, previous, PageDigests(self._seed, size))

    async def _write(self, *, full: bool) -> bool:
        """Append one checkpoint to the log in use; False when it does not fit."""
        start = self._generation
        assert start is not None
        copies = self._usable()
        draft = Draft(LogSeal(self._key, start.log), start, self._directory)
        dirty = {one.ino: one for one in self.dirty()}
        try:
            if full and self.roots is not None:
                draft.put(self.roots.head(start.log))
            async with self._db.frozen() as image:
                changes, at = image.seq - self.rows.own, time.time()
                dirty |= {one.ino: one for one in self.dirty()}
                most = min(one.size for one in copies) - start.length - _COMMIT_ROOM
                if not await trio.to_thread.run_sync(partial(draft.add_pages, image, most)):
                    return False
            commit = self._commit(start, full, image.seq, draft, at, list(dirty.values()), (image.pages, image.files))
            body, after = draft.finish(commit)
            self.rows.add_commit(commit, body)
            await self._db.sync()  # I5 begins here: what this store forgot is on stable storage, and this commit known
            done = await self.logs.append(copies, draft.read, draft.length)
            if not done:
                self._generation = None
                raise DepotUnreachable("no depot took the checkpoint")
            self.rows.acknowledged([(one.id, after.length) for one in done])
        finally:
            draft.close()
        self._generation, self._covered, self._untold = after, changes, (image.seq, at)
        self._behind_since = None
        await trio.to_thread.run_sync(after.save, self._state)
        return True

    def _commit(self, start: Generation, full: bool, seq: int, draft: Draft, at: float, dirty: Sequence[Dirty],
                counts: tuple[int, int]) -> Commit:  # fmt: skip
        last = self.rows.last_commit()
        writer = self._db.facts["checkpoint_writer"]
        versions = dict(last[1]) if last else {}
        versions[writer] = versions.get(writer, 0) + 1
        pages, files = counts
        return Commit(
            volume=self._db.facts["uuid"], epoch=epoch_of(self._db), writer=writer, seq=seq, versions=versions,
            previous=start.previous, full=full, content=draft.content, page_size=draft.pages.page_size,
            pages=pages, files=files, at=at, dirty=dirty,
        )  # fmt: skip

    async def _tell(self) -> None:
        """Make up copies of the log, let the root say where they are, and let go of the logs before."""
        assert self._generation is not None
        log = self._generation.log
        await self._make_up()
        whole = self._usable()
        if self.roots is not None and not await self.roots.tell(whole):
            raise DepotUnreachable("no depot that holds the root takes a word")
        if self._untold is not None and len(self.logs.staying(whole)) >= self._enough():
            self.rows.landed(*self._untold)
            self._untold = None
        needless = [one for one in self.rows.copies(CHECKPOINT) if one.log != log]
        if self.logs.staying(whole):
            needless += [one for one in self._leaving() if one.kind == CHECKPOINT and one not in needless]
        if self.roots is not None and self.roots.is_told_elsewhere(self._leaving()):
            needless += [one for one in self._leaving() if one.kind == ROOT]
        self.rows.drop(needless)

    def _enough(self) -> int:
        """Copies without which nothing is released: the only one may be lost, and the checkpoint before names it."""
        return min(2, sum(depot.role == "active" and depot.answers for depot in self._depots)) or 1

    async def _make_up(self) -> None:
        """Bring short copies of the log up to date, and make more where there are too few."""
        assert self._generation is not None
        try:
            await self.logs.keep(self._of_log, self._generation.length)
        except (DepotError, DepotUnreachable, NoSpace) as error:
            _log.info("the checkpoint has too few copies for now: %s", error)

    def _of_log(self) -> list[Copy]:
        """All copies of the log in use, also short ones."""
        return [one for one in self.rows.copies(CHECKPOINT) if self._generation and one.log == self._generation.log]


#: Kept free in a log behind the pages: for the commit record, which may name two thousand files.
_COMMIT_ROOM = 128 * 1024
