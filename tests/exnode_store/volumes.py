"""A small volume with files whose slices are in the ledger, without a depot behind it."""

import os
import stat
import time
from pathlib import Path

from ibpfs.config import VolumePaths
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import NewReplica, NewSlice, Settlement
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm

DIRECTORY, SUB, FILE, BIG, LINK = 2, 3, 4, 5, 6


def small_volume(root: Path) -> VolumePaths:
    """/dir, /dir/sub, /dir/sub/deep, /dir/file (two names, two slices), /big (slices in two segments), /link."""
    paths = VolumePaths(root)
    create_volume(paths, depots=["ibp://127.0.0.1:1", "ibp://127.0.0.1:2"], owner=(0, 0))
    with Database(paths.store) as db:
        ledger = Ledger(db, time.time)
        names = Namespace(db, time.time_ns, ledger.unmap)
        names.create(1, b"dir", NewInode(stat.S_IFDIR | 0o755, 0, 0))
        names.create(DIRECTORY, b"sub", NewInode(stat.S_IFDIR | 0o755, 0, 0))
        names.create(DIRECTORY, b"file", NewInode(stat.S_IFREG | 0o644, 0, 0))
        names.create(1, b"big", NewInode(stat.S_IFREG | 0o644, 0, 0))
        names.create(1, b"link", NewInode(stat.S_IFLNK | 0o777, 0, 0, target=b"dir/file"))
        names.create(SUB, b"deep", NewInode(stat.S_IFDIR | 0o755, 0, 0))
        names.link(FILE, 1, b"file")
        names.setxattr(FILE, b"user.colour", b"blue")
        put(ledger, db, [(FILE, 0, 4096), (FILE, 4096, 100), (BIG, 0, 70000)])
        put(ledger, db, [(BIG, 70000, 5000)])
    return paths


def put(ledger: Ledger, db: Database, runs: list[tuple[int, int, int]]) -> int:
    """Commit one closed segment with a slice for each (ino, start, length); two replicas."""
    now = time.time()
    keys = [tuple(Key(os.urandom(8).hex(), "0") for _ in range(3)) for _ in range(2)]
    rows = ledger.add_pending([(depot, *three) for depot, three in enumerate(keys, 1)])
    news, at, settlements = [], 0, {}
    for ino, start, length in runs:
        form = SliceForm(os.urandom(16), bytes.fromhex(db.facts["uuid"]), 1, AES_256_GCM, 65536, length)
        version = db.value("SELECT version FROM inodes WHERE ino = ?", (ino,)) + 1
        news.append(NewSlice(ino, start, start + length, version, form, os.urandom(16), at))
        settlements[ino] = Settlement(None, None, version + 1, version + 1)
        at += form.stored_length
    with db.transaction():
        replicas = [
            NewReplica(row, depot, *three, now + 1000, now)
            for row, (depot, three) in zip(rows, enumerate(keys, 1), strict=True)
        ]
        segment = ledger.add_segment(1, replicas)
        ledger.commit(segment, at, news, lambda: settlements)
        ledger.close_segment(segment)
    return segment


def kill(db: Database) -> None:
    """What a kill leaves of it: no WAL is folded, and nothing stays open."""
    db._connection.close()
    db._wal.close()
    db._wal_index.close()
    os.close(db._descriptor)
    db._descriptor = -1
