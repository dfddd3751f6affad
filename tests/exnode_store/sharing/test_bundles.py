"""What is loaded as one, and that each part has its own bytes then, whatever a copy is worth."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given

from ibpfs.depot.address import Address
from ibpfs.exnode_store.sealing import AES_256_GCM, MAX_SLICE, SliceForm, seal
from ibpfs.exnode_store.sharing.bundles import _GAP, Bundles, _place, bundled
from ibpfs.exnode_store.sharing.contents import Content, Copy, Run, SharedPart, SharedSlice
from ibpfs.exnode_store.sharing.fetching import Unavailable

from .shapes import contents
from .test_notation import CONTENT
from .test_reading import Local, depot, stored


@given(contents())
def test_all_parts_in_order_and_those_together_that_are_close(content: Content) -> None:
    parts = [part for entry in content.entries for part in entry.parts]
    found = list(bundled(content, parts))
    assert [part for bundle in found for part in bundle] == parts
    for bundle in found:
        places = [_place(content, part) for part in bundle]
        assert len({run for run, _, _ in places}) == 1
        if len(bundle) > 1:
            assert places[-1][2] - places[0][1] <= MAX_SLICE
            assert all(0 <= later[1] - sooner[2] <= _GAP for sooner, later in pairwise(places))


CLEAR = [os.urandom(size) for size in (100, 1, 5000, 70)]


def sealed() -> tuple[list[SharedSlice], bytes]:
    """Small slices back to back."""
    slices, data = [], b""
    for clear in CLEAR:
        form = SliceForm(os.urandom(16), bytes(16), 1, AES_256_GCM, 1024, len(clear))
        slices.append(SharedSlice(form, 0, len(data), os.urandom(32)))
        data += b"".join(seal(form, slices[-1].key, clear))
    return slices, data


async def content_of(depots: Local, slices: list[SharedSlice], *copies: bytes) -> Content:
    places = [Copy(Address("one", number), (await stored(depots, data)).read.wire_key)
              for number, data in enumerate(copies, start=1)]  # fmt: skip
    return replace(CONTENT, runs=(Run(len(copies[0]), tuple(places)),), slices=tuple(slices))


PARTS = [SharedPart(0, len(clear), number, 0) for number, clear in enumerate(CLEAR)]


async def test_one_load_for_all(tmp_path: Path) -> None:
    slices, data = sealed()
    async with depot(tmp_path) as depots:
        content = await content_of(depots, slices, data)
        parts = [*PARTS[:2], SharedPart(7, 1207, 2, 1030), PARTS[3]]  # of the third, a piece
        bundles = Bundles(depots, content, parts)
        assert len(bundles._held) == 0
        assert [await bundles.fetch(part, 0) for part in parts] == [*CLEAR[:2], CLEAR[2][1030:2230], CLEAR[3]]
        assert len(bundles._held) == 1
        assert await bundles.fetch(PARTS[2], 0) == CLEAR[2]  # of no bundle


async def test_a_copy_that_was_changed(tmp_path: Path) -> None:
    """Another gives all; where there is none, all but what was changed is to be had."""
    slices, data = sealed()
    at = slices[2].offset + 60
    changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    async with depot(tmp_path) as depots:
        both = Bundles(depots, await content_of(depots, slices, changed, data), PARTS)
        assert [await both.fetch(part, 0) for part in PARTS] == CLEAR
        alone = Bundles(depots, await content_of(depots, slices, changed), PARTS)
        for number in (0, 1, 3):
            assert await alone.fetch(PARTS[number], 0) == CLEAR[number]
        with pytest.raises(Unavailable):
            await alone.fetch(PARTS[2], 0)


async def test_what_was_let_go_is_fetched_by_itself(tmp_path: Path) -> None:
    slices, data = sealed()
    async with depot(tmp_path) as depots:
        bundles = Bundles(depots, await content_of(depots, slices, data), PARTS)
        assert await bundles.fetch(PARTS[0], 0) == CLEAR[0]
        bundles._of[PARTS[0]].clear = {}
        assert [await bundles.fetch(part, 0) for part in PARTS] == CLEAR
