"""A volume's directory made anew from its depots, on a machine that has never seen it."""

import shutil
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import trio

from ibpfs.config import VolumePaths, dump_config, parse_config, write_private
from ibpfs.depot.embedded import EmbeddedDepot
from ibpfs.errors import DataError, VolumeError
from ibpfs.exnode_store.checkpoints.commits import Commit, Place
from ibpfs.exnode_store.checkpoints.log_rows import SNAPSHOT, LogRows
from ibpfs.exnode_store.checkpoints.losses import note_lost
from ibpfs.exnode_store.checkpoints.recovery import Recovered, Recoverer, check_file, recovering
from ibpfs.exnode_store.checkpoints.recovery_string import Recovery
from ibpfs.exnode_store.creation import checkpoint_facts, first_slot, sync_file
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.keys import open_slots
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.unfinished import marked, take_away

#: Seconds that the volume's own depot has to start.
_DEPOT_START = 10.0


@dataclass
class Rebuilt:
    """What a person is told. `lost`: (name, bytes) of files that had bytes in the lost spool alone."""

    commit: Commit
    notes: list[str]
    lost: list[tuple[str, int]] = field(default_factory=list)


async def rebuild(paths: VolumePaths, recovery: Recovery, passphrase: bytes | None = None) -> Rebuilt:
    """Make the volume at `paths`, where nothing is, or its own depot's directory alone. VolumeError, WrongKey."""
    if not recovery.places:
        raise VolumeError("this recovery string opens the keys of a volume that is there; it does not say where its"
                          " checkpoints are (one printed by ibpfs recovery-key does)")  # fmt: skip
    _check_own_depot(paths, recovery)
    with _made_or_removed(paths):
        async with _own_depot(paths, recovery), recovering(recovery, paths.depot) as recoverer:
            with paths.store.open("wb") as file:
                paths.store.chmod(0o600)
                recovered = await recoverer.recover(file)
            await _bring_snapshots(paths, recoverer)
        check_file(paths.store)
        lost = note_lost(paths.store, recovered.commit.dirty)
        text = _take_over(paths, recovery, recovered, passphrase)
        sync_file(paths.store)
        write_private(paths.properties, text.encode())  # last: without it there is no volume
    return Rebuilt(recovered.commit, recovered.notes, lost)


def _check_own_depot(paths: VolumePaths, recovery: Recovery) -> None:
    if all(place.embedded for place in recovery.places) and not (paths.depot / "allocations").is_dir():
        raise VolumeError("everything was on the volume's own depot: without its directory it cannot come back; if you"
                          f" have VOLUME/depot, put it at {paths.depot}")  # fmt: skip


@contextmanager
def _made_or_removed(paths: VolumePaths) -> Iterator[None]:
    """The volume's directories; after a failure, or before the next try, all but its own depot's is gone again."""
    take_away(paths, {paths.depot.name})
    if paths.root.exists():
        there = {entry.name for entry in paths.root.iterdir()}
        if there - {paths.depot.name}:
            raise VolumeError(f"{paths.root}: is not empty (its own depot's directory alone may be there)")
    else:
        there = None
        paths.root.mkdir(mode=0o700, parents=True)
    paths.root.chmod(0o700)
    with marked(paths.root):
        yield from _filled(paths, there)


def _filled(paths: VolumePaths, there: Collection[str] | None) -> Iterator[None]:
    try:
        for directory in paths.directories:
            directory.mkdir(mode=0o700, exist_ok=True)
        yield
    except BaseException:
        for entry in paths.root.iterdir():
            if entry.name in (there or ()):
                continue
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        if there is None:
            paths.root.rmdir()
        raise


@asynccontextmanager
async def _own_depot(paths: VolumePaths, recovery: Recovery) -> AsyncIterator[None]:
    """The volume's own depot, running, where the string names it and its directory is there."""
    if not (any(place.embedded for place in recovery.places) and (paths.depot / "allocations").is_dir()):
        yield
        return
    embedded = EmbeddedDepot(paths.depot, paths.log / "depot.log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(embedded.keep, lambda _: None)
        with trio.move_on_after(_DEPOT_START):
            await embedded.ready.wait()
        yield
        nursery.cancel_scope.cancel()


async def _bring_snapshots(paths: VolumePaths, recoverer: Recoverer) -> None:
    """The files of the snapshots that the store knows. One that no depot has ever had is given up; one that cannot be
    had now stays pinned, and whoever owns the volume looks for it again."""
    with Database(paths.store) as db:
        rows, ledger = LogRows(db, lambda: 0.0), Ledger(db, lambda: 0.0)
        logs: dict[tuple[str, bytes], list[Place]] = {}
        for copy in rows.copies(SNAPSHOT):
            if copy.length:
                logs.setdefault((copy.name or "", copy.log), []).append(rows.place(copy))
        names = {str(pin.id): pin.name for pin in ledger.pins(SNAPSHOT)}
        for number in names.keys() - {number for number, _ in logs}:
            ledger.drop_pin(int(number))
            recoverer.notes.append(f"snapshot {names[number]} is given up: it was on no depot yet")
    for (number, log), places in logs.items():
        paths.snapshots.mkdir(mode=0o700, exist_ok=True)
        target = paths.snapshots / f"{int(number)}.sqlite"
        try:
            with target.open("wb") as file:
                target.chmod(0o600)
                await recoverer.recover_snapshot(log, places, file)
        except DataError as error:
            target.unlink()
            name = names.get(number, number)
            recoverer.notes.append(f"snapshot {name} does not come back now ({error}): a mount looks for it again")
        else:
            sync_file(target)


def _take_over(paths: VolumePaths, recovery: Recovery, recovered: Recovered, passphrase: bytes | None) -> str:
    """New keys to the door, a new writer in the line of commits; returns the text of volume.toml."""
    with Database(paths.store) as db:
        config = parse_config(db.facts["volume_toml"], paths.properties)
        keys = open_slots(config.slots, config.epochs, "recovery", recovery.secret, config.uuid)
        kept = [slot for slot in config.slots if slot.get("kind") == "recovery"]
        config.slots = [first_slot(paths, keys, config.uuid, passphrase), *kept]
        text = dump_config(config)
        rows = LogRows(db, lambda: recovered.commit.at)
        with db.transaction():
            rows.add_commit(recovered.commit, recovered.record)
            rows.give_up(recovered.given_up)
            db.set_fact("root_records", str(recovered.word))  # ours are to be the later ones, whatever this store knew
            db.set_fact("volume_toml", text)
            db.set_fact("checkpoint_seq", str(recovered.commit.seq))
            db.set_fact("checkpoint_at", str(recovered.commit.at))
            db.set_fact("checkpoint_writer", checkpoint_facts(keys, config.uuid)["checkpoint_writer"])
            # What was being written is gone with the spool: truncations that only its records waited for are over.
            db.execute("DELETE FROM voids WHERE ino NOT IN (SELECT ino FROM mappings)")
    return text


