"""Record logs as bytes: what goes in comes out; what was changed, cut or made up gives one clear error."""

import hashlib
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.checkpoints.commits import (
    MOST_RUNS,
    Commit,
    Dirty,
    Place,
    digest_of,
    dump_places,
    is_behind,
    parse_commit,
    parse_places,
)
from ibpfs.exnode_store.checkpoints.reading import LogCopy, LogReader, find_size, read_head, words
from ibpfs.exnode_store.checkpoints.record_log import (
    COMMIT,
    HEADER_SIZE,
    MOST_BODY,
    PAGES,
    PLACE,
    DamagedLog,
    LogSeal,
    make_head,
    parse_head,
    parse_header,
)

KEY, LOG = b"k" * 32, b"l" * 16
SEAL = LogSeal(KEY, LOG)


class Ends(DamagedLog):
    """There are no such bytes."""


def held(data: bytes, label: str = "depot") -> LogCopy:
    async def load(offset: int, length: int) -> bytes:
        if offset + length > len(data):
            raise Ends("the allocation holds fewer bytes")
        return data[offset : offset + length]

    return LogCopy(label, load)


def commit(number: int, previous: bytes, content: bytes, *, full: bool) -> Commit:
    return Commit("volume", 1, "writer", number * 10, {"writer": number}, previous, full, content, 4096, 3, 1, 1.5)


def checkpoints(count: int) -> tuple[bytes, list[int]]:
    """A log without its head, of a full checkpoint and increments of one batch each; where each of them ends."""
    data, stops, previous, number = b"", [], bytes(32), 1
    for index in range(count):
        pages = SEAL.seal(PAGES, number, b"pages %d" % index)
        body = commit(index + 1, previous, digest_of(pages), full=index == 0).dump()
        data += pages + SEAL.seal(COMMIT, number + 1, body)
        stops.append(len(data))
        previous, number = digest_of(body), number + 2
    return data, stops


@given(st.lists(st.tuples(st.sampled_from([PAGES, COMMIT, PLACE]), st.binary(max_size=300)), max_size=8))
def test_records(bodies: list[tuple[int, bytes]]) -> None:
    data = b"".join(SEAL.seal(kind, number, body) for number, (kind, body) in enumerate(bodies))
    found = list(SEAL.records(data, 0))
    assert [(one.kind, one.body, one.number) for one in found] == [
        (kind, body, number) for number, (kind, body) in enumerate(bodies)
    ]
    assert not bodies or found[-1].stop == len(data)
    assert list(LogSeal(KEY, b"x" * 16).records(data, 0)) == []
    assert list(LogSeal(b"x" * 32, LOG).records(data, 0)) == []


@given(st.integers(2, 5), st.data())
def test_a_root_s_last_sound_word_counts(count: int, data: st.DataObject) -> None:
    places = [Place(f"ibp://depot:{number}", False, "key/1") for number in range(count)]
    records = [SEAL.seal(PLACE, number, dump_places(LOG, [place])) for number, place in enumerate(places)]
    bad = data.draw(st.integers(0, count - 1))
    torn = bytearray(records[bad])
    torn[data.draw(st.integers(0, len(torn) - 1))] ^= data.draw(st.integers(1, 255))
    records[bad] = bytes(torn[: data.draw(st.integers(1, len(torn)))])
    said = words(SEAL, b"".join(records))
    assert [word.places for word in said] == [[place] for number, place in enumerate(places) if number != bad]


@given(st.binary(max_size=200))
def test_what_is_no_log(data: bytes) -> None:
    assert list(SEAL.records(data, 0)) == []
    assert words(SEAL, data) == []
    for parse in (parse_head, parse_header, parse_commit, parse_places):
        with pytest.raises(DamagedLog):
            parse(data)


def test_unreasonable_lengths() -> None:
    with pytest.raises(DamagedLog, match="unreasonable"):
        parse_head(b"IBPRLOG1" + LOG + b"\xff\xff\xff\xff")
    with pytest.raises(DamagedLog, match="unreasonable"):
        parse_header(b"rec1\1\0\0\0" + bytes(8) + (MOST_BODY + 1).to_bytes(4, "big") + bytes(12))
    with pytest.raises(ValueError, match="too long"):
        SEAL.seal(PAGES, 1, bytes(MOST_BODY))
    assert parse_head(make_head(LOG, b"text")) == (LOG, 4)


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.integers(0, 99), max_size=3), st.booleans())
def test_commits(writer: str, versions: dict[str, int], full: bool) -> None:
    dirty = [Dirty(5, 6, [(0, 6)])]
    one = Commit("volume", 2, writer, 7, versions, b"p" * 32, full, b"c" * 32, 8192, 9, 10, 11.25, dirty)
    assert parse_commit(one.dump()) == one
    assert one.number == sum(versions.values())


def test_a_file_with_many_runs_is_told_from_the_first_to_the_last() -> None:
    runs = [(2 * number, 2 * number + 1) for number in range(MOST_RUNS + 1)]
    assert Dirty(5, 17, runs).dump() == [5, 17, [[0, 2 * MOST_RUNS + 1]]]
    assert Dirty(5, 16, runs[:-1]).dump() == [5, 16, [list(run) for run in runs[:-1]]]


@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 5)), st.sampled_from("abc"))
def test_who_is_behind(ours: dict[str, int], writer: str) -> None:
    theirs = ours | {writer: ours.get(writer, 0) + 1}
    assert is_behind(ours, theirs)
    assert is_behind(ours, ours)
    assert not is_behind(theirs, ours)


@given(st.integers(1, 4), st.data())
async def test_a_reader_ends_at_the_last_whole_checkpoint(count: int, data: st.DataObject) -> None:
    log, stops = checkpoints(count)
    cut = data.draw(st.integers(0, len(log)))
    found = await LogReader([held(log[:cut])], SEAL).read(0)
    whole = sum(stop <= cut for stop in stops)
    assert len(found.commits) == whole
    assert found.stop == (stops[whole - 1] if whole else 0)
    at = data.draw(st.integers(0, len(log) - 1))
    changed = bytearray(log)
    changed[at] ^= data.draw(st.integers(1, 255))
    found = await LogReader([held(bytes(changed))], SEAL).read(0)
    assert len(found.commits) == sum(stop <= at for stop in stops)
    assert found.damage
    found = await LogReader([held(bytes(changed)), held(b""), held(log)], SEAL).read(0)
    assert (len(found.commits), found.damage) == (count, "")


async def test_a_commit_that_follows_another_line_is_refused() -> None:
    log, stops = checkpoints(2)
    other, _ = checkpoints(3)
    spliced = log[: stops[0]] + other[stops[0] :]
    assert len((await LogReader([held(spliced)], SEAL).read(0)).commits) == 1 + 2 * (spliced == other)
    pages = SEAL.seal(PAGES, 3, b"other pages")
    strange = SEAL.seal(COMMIT, 4, commit(2, b"x" * 32, digest_of(pages), full=False).dump())
    found = await LogReader([held(log[: stops[0]] + pages + strange)], SEAL).read(0)
    assert (len(found.commits), found.damage) == (1, "a commit does not follow the one before it")
    found = await LogReader([held(log[stops[0] :])], SEAL).read(0)
    assert found.damage == "the log does not begin with a full checkpoint"


async def test_a_pages_record_that_is_left_out_is_noticed() -> None:
    first, second = SEAL.seal(PAGES, 1, b"a"), SEAL.seal(PAGES, 2, b"b")
    body = commit(1, bytes(32), digest_of(first + second), full=True).dump()
    found = await LogReader([held(first + SEAL.seal(COMMIT, 3, body))], SEAL).read(0)
    assert (found.commits, found.damage) == ([], "record 2 is missing")


async def test_a_long_checkpoint_takes_little_memory(tmp_path: Path) -> None:
    batches = [os.urandom(1 << 20) for _ in range(24)]
    records = [SEAL.seal(PAGES, number, batch) for number, batch in enumerate(batches, 1)]
    body = commit(1, bytes(32), digest_of(b"".join(records)), full=True).dump()
    copy = held(b"".join(records) + SEAL.seal(COMMIT, len(records) + 1, body))
    read = hashlib.sha256()

    async def apply(_: Commit, pages: Iterable[bytes]) -> None:
        for batch in pages:
            read.update(batch)

    tracemalloc.start()
    try:
        found = await LogReader([copy], SEAL).read_into(0, apply, tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(found.commits), found.damage) == (1, "")
    assert read.digest() == hashlib.sha256(b"".join(batches)).digest()
    assert most < 10 << 20
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 3000))
async def test_the_size_is_found_by_reading(size: int) -> None:
    assert await find_size(held(bytes(size)), 5000) == size


async def test_a_head() -> None:
    assert await read_head(held(make_head(LOG, b"how") + b"rec1")) == (LOG, b"how", 31)
    assert HEADER_SIZE == 32
