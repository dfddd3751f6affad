"""The check of stored bytes: every slice in every replica against its digest and, with keys, its frames.

Loads a few slices at a time, a few replicas side by side. What a sound replica can mend is mended from it.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable, ErrorCode, NoRoom
from ibpfs.errors import DataError, NoSpace
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.erasure import Coded
from ibpfs.exnode_store.fsck_faults import SEQ, Checkup, Fault
from ibpfs.exnode_store.fsck_shards import BAD, look_at
from ibpfs.exnode_store.fsck_stored import GONE, READ, SILENT, Judge, Stored, Verdict, find_stored, groups
from ibpfs.exnode_store.fsck_volume import is_digest_seed
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.placement import STUTTERING
from ibpfs.exnode_store.transfer import Transfer
from ibpfs.exnode_store.warmer import Warmer

#: Segments that are verified side by side; each holds a few MiB.
_WORKERS = 4
#: Seconds a depot gets to answer at the start.
PATIENCE = 10.0
#: Whose bytes those are that no file is mapped to.
_KEPT = "what snapshots or shares keep"


async def check_data(
    checkup: Checkup, embedded_socket: str, keys: VolumeKeys | None, patience: float = PATIENCE
) -> None:
    """Verify, and mend what can be mended. Without `keys` only digests are looked at.

    `patience`: seconds that each depot gets to answer at first.
    """
    if not is_digest_seed(checkup.db.facts.get("digest_seed", "")):
        checkup.note("stored bytes are not verified: without fact digest_seed their digests mean nothing")
        return
    async with DepotSet(checkup.db, embedded_socket).watched() as depots:
        data = DataCheck(checkup, depots, keys)
        async with trio.open_nursery() as nursery:
            for depot in depots:
                nursery.start_soon(_meet, depot, patience)
        await data.verify()
        if not checkup.read_only:
            await data.mend()


async def _meet(depot: Depot, patience: float) -> None:
    with trio.move_on_after(patience):
        while not depot.answers or depot.status is None:  # noqa: ASYNC110 (as its watcher goes)
            await trio.sleep(0.05)


class DataCheck:
    """One pass over all replicas."""

    def __init__(self, checkup: Checkup, depots: DepotSet, keys: VolumeKeys | None) -> None:
        self._checkup = checkup
        self._db = checkup.db
        self._depots = depots
        self._ledger = Ledger(checkup.db, time.time)
        self._judge = Judge(int(checkup.db.facts["digest_seed"], 16), keys, self._wrapped_key)
        self._unverified: dict[int, int] = {}
        self._scattered: list[tuple[int, dict[int, Replica]]] = []
        self._done = 0
        self._total = self._db.value(
            "SELECT coalesce(sum(length), 0) FROM segments s JOIN replicas r ON r.segment = s.id"
        )

    # Looking

    def _wrapped_key(self, slice_id: bytes) -> tuple[int, bytes] | None:
        sql = "SELECT k.epoch, k.wrapped FROM slices s JOIN imported_keys k ON k.slice = s.id WHERE s.slice_id = ?"
        return self._db.row(sql, (slice_id,))

    async def verify(self) -> None:
        segments = iter(self._db.rows("SELECT id FROM segments ORDER BY id"))

        async def work() -> None:
            for (segment,) in segments:
                await self._verify_segment(segment)

        async with trio.open_nursery() as nursery:
            for _ in range(_WORKERS):
                nursery.start_soon(work)
        imported = self._db.value("SELECT count(*) FROM slices WHERE digest = x''")
        if imported:
            self._checkup.note(f"{imported} imported slices have no digest: verified is only that bytes are there")
        for number, count in sorted(self._unverified.items()):
            self._checkup.outcome.unverified += 1
            self._checkup.note(f"{self._depot_name(number)}: does not answer, {_replicas_are(count)} not verified")

    async def _verify_segment(self, segment: int) -> None:
        slices = self._slices(segment)
        replicas = self._ledger.replicas(segment)
        coded = self._ledger.coded(segment)
        if coded is not None:
            await self._verify_shards(segment, coded, slices, replicas)
            return
        verdicts = {replica.id: await self._verify(replica, slices) for replica in replicas}
        for replica in replicas:
            if verdicts[replica.id].state == SILENT:
                self._unverified[replica.depot] = self._unverified.get(replica.depot, 0) + 1
        await self._settle(segment, slices, replicas, verdicts)

    async def _verify_shards(
        self, segment: int, coded: Coded, slices: Sequence[Stored], replicas: Sequence[Replica]
    ) -> None:
        """Each against its digest; and, from K sound ones, the slices."""
        found = await look_at(self._ledger, replicas, self._load)
        for replica in replicas:
            if found.states.get(replica.id) == SILENT:
                self._unverified[replica.depot] = self._unverified.get(replica.depot, 0) + 1
        self._done += self._ledger.segment_length(segment) * len(replicas)
        self._checkup.progress(self._done, self._total, "verifying replicas")
        enough = len(found.sound) >= coded.code.k
        self._settle_gone([one for one in replicas if found.states.get(one.id) == GONE], enough)
        for replica in replicas:
            if found.states.get(replica.id) == BAD:
                what = f"{self._name(replica)}: its bytes are not those of shard {replica.shard}"
                cure, repair = ("dropped, to be made anew", partial(self._drop, replica)) if enough else ("", None)
                self._checkup.handle(Fault(what, cure, repair))
        if not enough:
            verb = "not readable now" if SILENT in found.states.values() else "lost"
            for file in self._checkup.files_of("s.segment = ?", (segment,)) or [_KEPT] * bool(slices):
                has = f"{len(found.sound)} of the {coded.code.k} shards that are needed"
                self._checkup.handle(Fault(f"{file}: {verb}, segment {segment} has {has}"))
            return
        verdict, data = Verdict(), memoryview(b"".join(coded.code.decode(found.sound)))
        for stored in slices:
            self._judge.judge(stored, data[stored.offset : stored.stop], verdict)
        self._correct_digests(segment, slices, [verdict])
        for stored in slices:
            if stored.row in verdict.bad:
                for file in self._checkup.files_of("s.id = ?", (stored.row,)) or [_KEPT]:
                    what = f"{file}: lost, slice {stored.row} of segment {segment} is damaged in its shards"
                    self._checkup.handle(Fault(f"{what} ({verdict.bad[stored.row]})"))
        if not self._checkup.read_only:
            self._verified([one for one in replicas if found.states.get(one.id) == READ])

    def _slices(self, segment: int) -> list[Stored]:
        rows = self._db.rows(
            "SELECT id, segment_offset, digest, slice_id, origin, epoch, function, frame_size, length FROM slices"
            " WHERE segment = ? ORDER BY segment_offset", (segment,)
        )  # fmt: skip
        return [Stored.of(row) for row in rows]

    async def _verify(self, replica: Replica, slices: Sequence[Stored]) -> Verdict:
        verdict = Verdict()
        for group in groups(slices):
            try:
                await self._verify_group(replica, group, verdict)
            except CapabilityNotFound:
                verdict.state = GONE
            except (DepotError, DepotUnreachable) as error:
                verdict.state, verdict.trouble = SILENT, str(error)
            if verdict.state != READ:
                break
        self._done += self._ledger.segment_length(replica.segment)
        self._checkup.progress(self._done, self._total, "verifying replicas")
        return verdict

    async def _verify_group(self, replica: Replica, group: Sequence[Stored], verdict: Verdict) -> None:
        start = group[0].offset
        try:
            data = memoryview(await self._load(replica, start, group[-1].stop))
        except NoRoom:
            if len(group) == 1:
                verdict.bad[group[0].row] = "its bytes are not there"
                return
            for stored in group:
                await self._verify_group(replica, [stored], verdict)
            return
        for stored in group:
            self._judge.judge(stored, data[stored.offset - start : stored.stop - start], verdict)

    async def _load(self, replica: Replica, start: int, stop: int) -> bytearray:
        depot = self._depots.get(replica.depot)
        if start < 0:
            raise NoRoom(ErrorCode.WOULD_EXCEED_LIMIT)
        while True:
            # Its watcher finds out whether it comes back; one that never answered has had its time.
            while depot.state == STUTTERING and not depot.answers and depot.status is not None:  # noqa: ASYNC110
                await trio.sleep(0.1)
            if not depot.answers or depot.status is None:
                raise DepotUnreachable(depot.trouble)
            try:
                return await depot.call(lambda: depot.client.load(replica.read, replica.base + start, stop - start))
            except DepotUnreachable:
                continue

    # Judging a segment

    async def _settle(
        self, segment: int, slices: Sequence[Stored], replicas: Sequence[Replica], verdicts: dict[int, Verdict]
    ) -> None:
        read = [one for one in replicas if verdicts[one.id].state == READ]
        silent = any(verdicts[one.id].state == SILENT for one in replicas)
        self._correct_digests(segment, slices, [verdicts[one.id] for one in read])
        lost: set[int] = set()
        for stored in slices if read else []:
            if all(stored.row in verdicts[one.id].bad for one in read):
                lost.add(stored.row)
                await self._lost_slice(segment, stored, read, verdicts, silent=silent)
        harm = {one.id: set(verdicts[one.id].bad) - lost for one in read}
        sound = [one for one in read if not harm[one.id]]
        self._settle_gone([one for one in replicas if verdicts[one.id].state == GONE], bool(sound))
        if replicas and not read and not silent:
            for file in self._checkup.files_of("s.segment = ?", (segment,)) or [_KEPT] * bool(slices):
                self._checkup.handle(Fault(f"{file}: lost, segment {segment} has no replica left"))
        damaged = [one for one in read if harm[one.id]]
        if sound:
            for one in damaged:
                self._damaged(one, slices, verdicts[one.id], harm[one.id])
        elif damaged:
            self._scatter(segment, slices, read, verdicts, lost)
        if not self._checkup.read_only:
            self._verified([one for one in sound if not lost])

    def _correct_digests(self, segment: int, slices: Sequence[Stored], verdicts: Sequence[Verdict]) -> None:
        for stored in slices:
            digest = next((one.stale[stored.row] for one in verdicts if stored.row in one.stale), None)
            if digest is not None:
                sql = "UPDATE slices SET digest = ?, seq = ? WHERE id = ?"
                what = f"slice {stored.row} of segment {segment}: its bytes are sound, its digest is not"
                self._checkup.handle(
                    Fault(what, "digest corrected", self._checkup.statement(sql, digest, SEQ, stored.row))
                )

    async def _lost_slice(
        self, segment: int, stored: Stored, read: Sequence[Replica], verdicts: dict[int, Verdict], *, silent: bool
    ) -> None:
        """A slice that no replica has where it should be: somewhere else in the segment, or lost."""
        for replica in read:
            found = await self._find(replica, stored)
            if found is not None:
                what = f"slice {stored.row} of segment {segment}: its row differs from its bytes at {found[0].offset}"
                self._checkup.handle(Fault(what, "row corrected", partial(self._correct_row, segment, *found)))
                return
        reason = verdicts[read[0].id].bad[stored.row]
        where = "every replica that could be read" if silent else "every replica"
        for file in self._checkup.files_of("s.id = ?", (stored.row,)) or [_KEPT]:
            what = f"{file}: {'not readable now' if silent else 'lost'}, slice {stored.row} of segment {segment}"
            self._checkup.handle(Fault(f"{what} is damaged in {where} ({reason})"))

    async def _find(self, replica: Replica, stored: Stored) -> tuple[Stored, int] | None:
        """The slice as it lies elsewhere in a replica, or under another form; and how long the replica is."""
        depot = self._depots.get(replica.depot)
        try:
            length = (await depot.call(lambda: depot.client.probe(replica.manage))).size
            found = find_stored(stored, self._judge, await self._load(replica, 0, length))
        except (DepotError, DepotUnreachable):
            return None
        return None if found is None else (found, length)

    def _correct_row(self, segment: int, found: Stored, length: int) -> None:
        db, form = self._db, found.form
        db.execute(
            "UPDATE slices SET segment_offset = ?, epoch = ?, function = ?, frame_size = ?, length = ?,"
            " stored_length = ?, seq = ? WHERE id = ?",
            (found.offset, form.epoch, form.function, form.frame_size, form.length, form.stored_length, db.seq,
             found.row),
        )  # fmt: skip
        # The wrong row may have made the segment look longer than it is.
        db.execute(
            "UPDATE segments SET length = min(length, ?), live = (SELECT sum(stored_length) FROM slices"
            " WHERE segment = segments.id), seq = ? WHERE id = ?", (length, db.seq, segment)
        )  # fmt: skip

    def _settle_gone(self, gone: Sequence[Replica], dispensable: bool) -> None:
        for one in gone:
            repair = partial(self._drop, one) if dispensable else None
            cure = "dropped" if dispensable else ""
            self._checkup.handle(Fault(f"{self._name(one)}: the depot does not have it any more", cure, repair))

    def _damaged(self, replica: Replica, slices: Sequence[Stored], verdict: Verdict, harm: set[int]) -> None:
        first = min(harm)
        files = self._checkup.files_of("s.id = ?", (first,))
        count = f"{len(harm)} of {len(slices)} slices are" if len(slices) > 1 else "its slice is"
        what = f"{self._name(replica)}: {count} damaged ({verdict.bad[first]}; {files[0] if files else 'no file'})"
        self._checkup.handle(Fault(what, "dropped, to be copied anew", partial(self._drop, replica)))

    def _scatter(
        self, segment: int, slices: Sequence[Stored], read: Sequence[Replica], verdicts: dict[int, Verdict],
        lost: set[int],
    ) -> None:  # fmt: skip
        """No replica is sound as a whole, but each slice is in one of them."""
        where = {
            stored.row: next(one for one in read if stored.row not in verdicts[one.id].bad)
            for stored in slices
            if stored.row not in lost
        }
        what = f"segment {segment}: each of its {len(read)} replicas is damaged, all slices but {len(lost)} are in one"
        self._checkup.handle(
            Fault(what, "put together in a new segment", lambda: self._scattered.append((segment, where)))
        )

    def _verified(self, replicas: Sequence[Replica]) -> None:
        if not replicas:
            return
        with self._db.transaction() as db:
            for one in replicas:
                db.execute(
                    "UPDATE replicas SET verified_at = ?, suspect = 0, seq = ? WHERE id = ?",
                    (time.time(), db.seq, one.id),
                )
                if one.suspect:
                    self._checkup.note(f"{self._name(one)}: was suspect, is sound")

    def _drop(self, replica: Replica) -> None:
        self._ledger.drop_replica(replica)
        # An allocation that another segment claims as well is not released.
        self._db.execute(
            "DELETE FROM orphans WHERE EXISTS (SELECT 1 FROM replicas r WHERE r.depot = orphans.depot"
            " AND r.read_key = orphans.read_key)"
        )

    def _name(self, replica: Replica) -> str:
        depot = self._depot_name(replica.depot)
        return f"replica {replica.id} of segment {replica.segment} on {depot}, allocation {replica.read.label}"

    def _depot_name(self, number: int) -> str:
        address = self._db.value("SELECT address FROM depots WHERE id = ?", (number,))
        return f"depot {number}" if address is None else f"depot {address}"

    # Repairing

    async def mend(self) -> None:
        """Make up what is missing, release what is not needed."""
        ledger = Ledger(self._db, time.time)  # knows nothing of what the rows were before
        transfer = Transfer(self._db, ledger, self._depots)
        for segment, where in self._scattered:
            try:
                await self._put_together(segment, where, ledger, transfer)
            except (DepotError, DepotUnreachable, DataError, NoSpace) as error:
                self._checkup.outcome.left += 1
                self._checkup.note(f"segment {segment}: not put together yet: {error}")
        await transfer.close_old(every=True)
        warmer = Warmer(self._db, ledger, self._depots, transfer)
        await self._until_still(warmer.repair, "SELECT count(*) FROM replicas")
        await self._until_still(warmer.release_orphans, "SELECT count(*) FROM orphans")
        for segment, _, missing, _ in ledger.shortages():
            self._checkup.note(f"segment {segment}: lacks {missing} of its copies until a depot takes one")
        await self._db.sync()

    async def _until_still(self, step: Callable[[], Awaitable[None]], counted: str) -> None:
        before = None
        while before != (before := self._db.value(counted)):
            await step()

    async def _put_together(
        self, segment: int, where: dict[int, Replica], ledger: Ledger, transfer: Transfer
    ) -> None:
        policy = transfer.policy(self._db.value("SELECT policy FROM segments WHERE id = ?", (segment,)))
        for stored in self._slices(segment):
            if stored.row not in where:
                continue
            data = await self._load(where[stored.row], stored.offset, stored.stop)
            target, offset = await transfer.append(policy, [data], len(data))
            try:
                with transfer.committing(target) as row:
                    ledger.move(row, offset + len(data), [(stored.row, offset)])
            finally:
                await transfer.release(target)


def _replicas_are(count: int) -> str:
    return "1 replica is" if count == 1 else f"{count} replicas are"
