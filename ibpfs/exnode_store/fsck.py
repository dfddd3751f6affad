"""The check of a volume's exNode store: which invariants are looked at, in which order; each repair builds on those
before it.

The caller owns the volume. Nothing here contacts a depot; fsck_data does.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ibpfs.errors import VolumeError
from ibpfs.exnode_store import (
    fsck_database,
    fsck_ledger,
    fsck_names,
    fsck_pins,
    fsck_segments,
    fsck_shards,
    fsck_volume,
)
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck_faults import Checkup, Fault

Check = Callable[[Checkup], Iterable[Fault]]

CHECKS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    ("volume", (
        fsck_database.numbers, fsck_volume.volume_toml, fsck_volume.facts, fsck_volume.depots,
    )),
    ("names", (
        fsck_names.root, fsck_names.missing_inodes, fsck_volume.policies, fsck_names.types, fsck_names.symlinks,
        fsck_names.dentries, fsck_names.tree, fsck_names.orphans, fsck_names.xattrs, fsck_names.link_counts,
        fsck_names.trash,
    )),
    ("ledger", (
        fsck_ledger.mappings, fsck_ledger.allocated, fsck_ledger.versions, fsck_segments.slices,
        fsck_pins.dead_slices, fsck_segments.segments, fsck_pins.holds, fsck_pins.snapshots,
    )),
    ("allocations", (
        fsck_segments.keys, fsck_segments.stray_imports, fsck_segments.doubles, fsck_segments.stray_replicas,
        fsck_shards.coded_segments, fsck_shards.mixed_replicas,
    )),
    # From here on things are released: all counts that say what lives are right by now.
    ("leftovers", (
        fsck_ledger.voids, fsck_ledger.unlinked, fsck_ledger.sizes, fsck_segments.open_segments,
        fsck_pins.released_slices, fsck_segments.dead_segments, fsck_segments.pending, fsck_database.files,
    )),
)  # fmt: skip

#: What only loaded bytes can mend. fsck_data goes first where it runs.
LAST_CHECKS: tuple[Check, ...] = (
    fsck_segments.misplaced_slices, fsck_segments.shared_allocations, fsck_segments.lost_segments
)  # fmt: skip


@contextmanager
def checked_store(checkup: Checkup) -> Iterator[Database | None]:
    """The exNode store, its tables checked and repaired; None when it is too damaged to be opened.

    `finish` is to be called before the end.
    """
    path = checkup.paths.store
    if not path.exists():
        raise VolumeError(f"{path}: no exNode store there; put it back, or: ibpfs recover NEWVOLUME")
    checkup.handle_all(fsck_volume.directories(checkup))
    with _no_traces(path, checkup.read_only):
        if not fsck_database.check_database(checkup):
            yield None
            return
        with Database(path, read_only=checkup.read_only) as db:
            checkup.db = db
            try:
                _check(checkup)
                yield db
            except sqlite3.DatabaseError as error:
                raise VolumeError(f"{path}: cannot be read on ({error})") from error


def check_store(checkup: Checkup) -> None:
    """The whole check, without a depot."""
    with checked_store(checkup) as db:
        if db is not None:
            finish(checkup)


def finish(checkup: Checkup) -> None:
    """What is said last, of what nothing could repair."""
    for check in LAST_CHECKS:
        checkup.handle_all(check(checkup))
    fsck_database.check_rows(checkup)
    fsck_segments.note_orphans(checkup)


def _check(checkup: Checkup) -> None:
    steps = [(text, check) for text, checks in CHECKS for check in checks]
    for done, (text, check) in enumerate(steps):
        checkup.progress(done, len(steps), f"checking {text}")
        checkup.handle_all(check(checkup))
    checkup.progress(len(steps), len(steps), "checked")


@contextmanager
def _no_traces(path: Path, read_only: bool) -> Iterator[None]:
    """Reading a database that nobody has open makes its side files; a check that changes nothing removes them."""
    sides = [Path(f"{path}-wal"), Path(f"{path}-shm")]
    made = [side for side in sides if read_only and not side.exists()]
    try:
        yield
    finally:
        if len(made) == len(sides) and not (sides[0].exists() and sides[0].stat().st_size):
            for side in made:
                side.unlink(missing_ok=True)
