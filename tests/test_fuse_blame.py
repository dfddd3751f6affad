"""What the log says of a request that is answered with EIO: which file, segment, depot, and why."""

import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from ibpfs.errors import DataError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.whereabouts import Whereabouts
from ibpfs.fuse_blame import Blame
from ibpfs.fuse_errors import errno_of
from ibpfs.fuse_handles import Handles, OpenFile
from tests.cache.stack import Stack, run_depot, run_stack
from tests.exnode_store.test_verification import answers, volume

__all__ = ["volume"]


@asynccontextmanager
async def stored(volume: Any) -> AsyncIterator[tuple[Stack, Blame, int]]:
    """/directory/file on two depots, open as handle 1."""
    one, two = (volume.root.with_name(name) for name in ("one", "two"))
    async with run_depot(one), run_depot(two), run_stack(volume) as now:
        await answers(now, 2)
        directory = now.names.create(1, b"directory", NewInode(0o040755, 0, 0)).ino
        ino = now.names.create(directory, b"file", NewInode(0o100644, 0, 0)).ino
        await now.files.write(ino, 0, b"x" * 1000)
        await now.files.flush()
        handles: Handles[OpenFile] = Handles()
        handles.add(OpenFile(ino, True))
        yield now, Blame(Whereabouts(now.db, now.ledger, now.depots), (handles,)), ino


async def test_a_read_names_file_segment_depots_and_allocations(volume: Any) -> None:
    async with stored(volume) as (now, blame, ino):
        request, waited = blame("read", (1, 0, 100), True)
        assert request == "read of /directory/file"
        assert waited.startswith("segment 1: depot ")
        for replica in now.ledger.replicas(1):
            depot = now.depots.get(replica.depot)
            assert f"depot {depot.address} allocation {replica.read.label} ok" in waited
            assert replica.read.key not in waited
        assert blame("read", (1, 0, 100), False) == ("read of /directory/file", "")
        for depot in now.depots:
            depot.silent("no answer for 20 s")
        assert blame("fsync", (1, False), True)[1].count("no answer for 20 s") == 2
        now.names.unlink(now.names.lookup(1, b"directory").ino, b"file")
        assert blame("read", (1, 0, 100), False)[0] == f"read of inode {ino}"


async def test_requests_about_names_and_handles_that_are_not_known(volume: Any) -> None:
    async with stored(volume) as (_, blame, ino):
        assert blame("getattr", (ino, None), False)[0] == "getattr of /directory/file"
        assert blame("mkdir", (1, b"new\n\xff", 0o755), False)[0] == "mkdir of /new\n\\xff".replace("\n", "\n")
        assert blame("read", (77, 0, 1), True) == ("read of an unknown file (KeyError)", "unknown (KeyError)")
        assert blame("_read_frozen", (1, 0, 1), False)[0] == f"read of inode {ino} of a snapshot"


def test_one_line_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[bool] = []

    def about(late: bool) -> tuple[str, str]:
        asked.append(late)
        return "read of /file", "segment 1: depot ibp://host stuttering" if late else ""

    with caplog.at_level(logging.WARNING):
        assert errno_of(DataError("segment 1: depot ibp://host allocation 12ab: lost"), "read", about) == errno.EIO
        assert errno_of(trio.TooSlowError(), "read", about) == errno.EIO
        assert errno_of(ZeroDivisionError(), "read", about) == errno.EIO
        assert errno_of(FileNotFoundError(), "read") == errno.EIO
    assert caplog.messages == [
        "read of /file is answered with EIO: segment 1: depot ibp://host allocation 12ab: lost",
        "read of /file is answered with EIO: the deadline passed; segment 1: depot ibp://host stuttering",
        "read of /file is answered with EIO",  # and a traceback
        "read is answered with EIO",
    ]
    assert asked == [False, True, False]
