"""Copies near the receiver: made among depots or by way of this machine, remembered, and given back."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.wire import DepotUnreachable
from ibpfs.exnode_store.sealing import seal
from ibpfs.exnode_store.sharing.contents import Copy, Run
from ibpfs.exnode_store.sharing.fetching import Unavailable, fetch_part
from ibpfs.exnode_store.sharing.staging import Staged, StagedRun, stage

from .test_notation import CONTENT, PART, SLICE
from .test_reading import CLEAR, Local, depot, stored

NEAR = Address("near.example", 6714)
STAGED = Staged("abc", NEAR, time.time() + 1000, (StagedRun(0, Key("r", "1"), Key("m", "2")),))


def test_remembered(tmp_path: Path) -> None:
    path = tmp_path / "staged" / "abc.json"
    STAGED.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Staged.load(path) == STAGED
    assert "'m'" not in repr(STAGED)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"share": 1, "depot": "x", "until": 1, "runs": []}',
                                  '{"share": "a", "depot": "ibp://h", "until": 1, "runs": [[0, "a b/1", "c/2"]]}',
                                  '{"share": "a", "depot": "ibp://h", "until": 1, "runs": [[0]]}'])  # fmt: skip
def test_notes_that_make_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    assert Staged.load(tmp_path / "f") is None
    assert Staged.load(tmp_path / "missing") is None


def test_first_in_their_runs() -> None:
    copies = STAGED.on(CONTENT).runs[0].copies
    assert copies == (Copy(NEAR, Key("r", "1")), *CONTENT.runs[0].copies)
    assert replace(STAGED, until=time.time() - 1).on(CONTENT) == CONTENT
    assert replace(STAGED, runs=(StagedRun(7, Key("r", "1"), Key("m", "2")),)).on(CONTENT) == CONTENT


async def test_by_way_of_this_machine(tmp_path: Path) -> None:
    """The depots of this test cannot send to each other: they do not listen on a port."""
    async with depot(tmp_path) as depots:
        data = b"".join(seal(SLICE.form, SLICE.key, CLEAR))
        good = await stored(depots, data)
        run = Run(len(data), tuple(Copy(Address(host, 1), good.read.wire_key) for host in ("down", "one")))
        content = replace(CONTENT, runs=(run,))
        told: list[int] = []
        found = await stage(depots, content, "abc", Address("near", 1), 600, lambda done, *_: told.append(done), 2)
        assert told[-1] == len(data)
        await depots.client(Address("one", 1)).decr(good.manage.wire_key)
        assert await fetch_part(depots, found.on(content), PART) == CLEAR
        assert await depots.release(found.manages()) == []


async def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    async with depot(tmp_path) as depots:
        used = await _used(depots)
        content = replace(CONTENT, runs=(Run(200, (Copy(Address("down", 1), Key("k", "1")),)),))
        with pytest.raises(ExceptionGroup) as found:
            await stage(depots, content, "abc", Address("near", 1), 600, lambda *_: None, 2)
        assert found.group_contains(Unavailable, match="cannot be copied")
        assert await _used(depots) == used
        with pytest.raises(ExceptionGroup) as found:
            await stage(depots, content, "abc", Address("down", 1), 600, lambda *_: None, 2)
        assert found.group_contains(DepotUnreachable)


async def _used(depots: Local) -> int:
    return (await depots.client(Address("one", 1)).status()).used_bytes
