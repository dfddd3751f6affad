import logging
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibpfs.cache.clean import BLOCK, CleanCache

MIB = 1024 * 1024
DATA = random.Random(1).randbytes(4 * BLOCK)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of its own")


@pytest.fixture
def cache(tmp_path: Path) -> CleanCache:
    return CleanCache(tmp_path / "cache", 64 * MIB, 0.0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def on_disk(directory: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in directory.rglob("*") if path.is_file())


def only_file(directory: Path) -> Path:
    (path,) = (path for path in directory.rglob("*") if path.is_file())
    return path


def test_insert_and_read(cache: CleanCache) -> None:
    assert cache.read(7, 0, 10) is None
    assert cache.insert(7, 0, DATA[: 2 * BLOCK + 100])
    assert cache.read(7, 5, 500) == DATA[5:500]
    assert cache.read(7, BLOCK - 10, BLOCK + 10) == DATA[BLOCK - 10 : BLOCK + 10]
    assert cache.read(7, 0, 2 * BLOCK + 100) == DATA[: 2 * BLOCK + 100]
    assert cache.read(7, 0, 2 * BLOCK + 101) is None
    assert cache.read(8, 0, 10) is None
    assert cache.read_now(7, 5, 500) == DATA[5:500]


def test_missing_names_whole_blocks(cache: CleanCache) -> None:
    assert cache.missing(1, 100, BLOCK + 1) == [(0, BLOCK), (BLOCK, 2 * BLOCK)]
    cache.insert(1, BLOCK, DATA[:50])
    assert cache.missing(1, BLOCK + 10, BLOCK + 50) == []
    assert cache.covers(1, BLOCK, BLOCK + 50)
    assert cache.missing(1, BLOCK + 10, BLOCK + 51) == [(BLOCK, 2 * BLOCK)]


def test_block_is_kept_from_its_first_byte(cache: CleanCache) -> None:
    with pytest.raises(ValueError, match="first byte"):
        cache.insert(1, 5, b"x")


def test_files_are_for_the_owner_alone(cache: CleanCache, tmp_path: Path) -> None:
    cache.insert(300, 0, b"abc")
    path = only_file(tmp_path / "cache")
    assert path.relative_to(tmp_path / "cache") == Path("2c/300.0")
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_append_extends_across_blocks(cache: CleanCache) -> None:
    cuts = [0, 40, 5000, BLOCK - 3, BLOCK + 7, 3 * BLOCK + 1, 4 * BLOCK]
    for start, stop in pairwise(cuts):
        middle = (start + stop) // 2
        assert cache.append(1, start, [DATA[start:middle], b"", DATA[middle:stop]])
        assert cache.read(1, 0, stop) == DATA[:stop]
    assert cache.used == 4 * BLOCK


def test_append_of_very_many_pieces(cache: CleanCache) -> None:
    pieces = [DATA[at : at + 100] for at in range(0, 300_000, 100)]
    assert cache.append(1, 0, pieces)
    assert cache.read(1, 0, 300_000) == DATA[:300_000]


def test_append_that_continues_nothing_is_not_kept(cache: CleanCache) -> None:
    assert not cache.append(1, 100, [DATA[100:200]])
    cache.append(1, 0, [DATA[:100]])
    assert not cache.append(1, 150, [DATA[150:200]])
    assert cache.read(1, 150, 160) is None
    # The next block begins anew.
    assert cache.append(1, BLOCK, [DATA[BLOCK : BLOCK + 9]])
    assert cache.read(1, BLOCK, BLOCK + 9) == DATA[BLOCK : BLOCK + 9]


def test_longer_block_replaces_shorter(cache: CleanCache, tmp_path: Path) -> None:
    cache.insert(1, 0, DATA[:100])
    cache.insert(1, 0, DATA[:9000])
    cache.insert(1, 0, DATA[:50])
    assert cache.read(1, 0, 9000) == DATA[:9000]
    assert cache.used == on_disk(tmp_path / "cache") == 12288


def test_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = CleanCache(tmp_path, 3 * BLOCK, 0.0)
    for segment in (1, 2, 3):
        cache.insert(segment, 0, DATA[:BLOCK])
    cache.read(1, 0, 10)
    cache.insert(4, 0, DATA[:BLOCK])
    assert [cache.covers(segment, 0, 10) for segment in (1, 2, 3, 4)] == [True, False, True, True]


def test_more_than_the_limit_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for limit in (0, BLOCK - 1):
        cache = CleanCache(tmp_path, limit, 0.0)
        assert not cache.insert(1, 0, DATA[:BLOCK])
        assert cache.used == 0
    assert not caplog.records


def test_evict_forget_clear(cache: CleanCache, tmp_path: Path) -> None:
    for segment in (1, 2, 3):
        cache.insert(segment, 0, DATA[: 3 * BLOCK])
    cache.evict(1, BLOCK + 5, BLOCK + 6)
    assert cache.missing(1, 0, 3 * BLOCK) == [(BLOCK, 2 * BLOCK)]
    cache.forget(2)
    assert not cache.covers(2, 0, 1)
    assert cache.covers(3, 0, 3 * BLOCK)
    assert cache.used == on_disk(tmp_path / "cache") == 5 * BLOCK
    cache.clear()
    assert cache.used == on_disk(tmp_path / "cache") == 0


def test_survives_a_restart_in_order_of_use(tmp_path: Path) -> None:
    cache = CleanCache(tmp_path, 4 * BLOCK, 0.0)
    for segment in (1, 2, 3):
        cache.insert(segment, 0, DATA[:BLOCK])
        path = tmp_path / f"{segment:02x}" / f"{segment}.0"
        os.utime(path, (segment * 1000, segment * 1000))
    CleanCache(tmp_path, 4 * BLOCK, 0.0).read(1, 0, 10)  # a use is remembered
    again = CleanCache(tmp_path, 3 * BLOCK, 0.0)
    assert again.used == 3 * BLOCK
    assert again.read(2, 0, BLOCK) == DATA[:BLOCK]
    smaller = CleanCache(tmp_path, BLOCK, 0.0)
    assert [smaller.covers(segment, 0, 1) for segment in (1, 2, 3)] == [False, True, False]
    assert on_disk(tmp_path) == BLOCK


def test_an_appended_block_grows_on_after_a_restart(tmp_path: Path) -> None:
    CleanCache(tmp_path, BLOCK, 0.0).append(1, 0, [DATA[:777]])
    cache = CleanCache(tmp_path, BLOCK, 0.0)
    assert cache.append(1, 777, [DATA[777:1000]])
    assert cache.read(1, 0, 1000) == DATA[:1000]


def test_what_a_crash_left_is_removed_and_strangers_are_not(tmp_path: Path) -> None:
    shelf = tmp_path / "01"
    shelf.mkdir()
    (shelf / "1.0.5.tmp").write_bytes(b"torn")
    (shelf / "notes.txt").write_bytes(b"somebody's")
    (shelf / "1.1").write_bytes(b"")
    (tmp_path / "README").write_bytes(b"hello")
    cache = CleanCache(tmp_path, BLOCK, 0.0)
    assert cache.used == 0
    assert not (shelf / "1.0.5.tmp").exists()
    assert (shelf / "notes.txt").exists()
    assert cache.insert(1, BLOCK, DATA[:10])


def test_cut_file_is_missing(cache: CleanCache, tmp_path: Path) -> None:
    cache.insert(1, 0, DATA[:BLOCK])
    os.truncate(only_file(tmp_path), 500)
    assert cache.read_now(1, 400, 600) is None
    assert cache.read(1, 400, 600) is None
    assert not cache.covers(1, 0, 10)
    assert cache.used == 0


def test_deleted_file_is_missing(cache: CleanCache, tmp_path: Path) -> None:
    cache.insert(1, 0, DATA[:BLOCK])
    only_file(tmp_path).unlink()
    assert cache.read(1, 0, 10) is None
    assert cache.missing(1, 0, 10) == [(0, BLOCK)]


def test_a_block_evicted_before_it_grows_is_no_alarm(
    cache: CleanCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.insert(1, 0, DATA[:100])
    only_file(tmp_path).unlink()
    assert not cache.append(1, 100, [DATA[100:200]])
    assert not caplog.records
    assert cache.insert(1, 0, DATA[:200])
    assert cache.read(1, 0, 200) == DATA[:200]


def test_directory_removed_under_us(cache: CleanCache, tmp_path: Path) -> None:
    cache.insert(1, 0, DATA[:BLOCK])
    shutil.rmtree(tmp_path / "cache")
    assert cache.read(1, 0, 10) is None
    assert cache.insert(2, 0, DATA[:100])
    assert cache.read(2, 0, 100) == DATA[:100]
    cache.append(3, 0, [DATA[:10]])
    shutil.rmtree(tmp_path / "cache")
    assert not cache.append(3, 10, [DATA[10:20]])


def test_no_directory_can_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = CleanCache(tmp_path / "file" / "cache", 64 * MIB, 0.0)
    assert not cache.insert(1, 0, DATA[:100])
    assert not cache.append(1, 0, [DATA[:100]])
    assert cache.read(1, 0, 100) is None
    assert cache.used == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()


@needs_root
def test_small_disk_is_filled_and_turned_over(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = CleanCache(small_disk, 1024 * MIB, 0.0)
    for segment in range(20):
        assert cache.insert(segment, 0, DATA[:BLOCK])
    assert cache.read(19, 0, BLOCK) == DATA[:BLOCK]
    assert 2 * BLOCK <= cache.used <= 4 * BLOCK
    assert not caplog.records


@needs_root
def test_disk_filled_by_others(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = CleanCache(small_disk, 1024 * MIB, 0.0)
    cache.append(9, 0, [DATA[:1000]])
    with pytest.raises(OSError, match="space"):
        (small_disk / "other").write_bytes(bytes(4 * MIB))
    for segment in range(5):
        assert not cache.insert(segment, 0, DATA[:BLOCK])
    assert not cache.append(9, 1000, [DATA[:BLOCK]])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    (small_disk / "other").unlink()
    assert cache.insert(1, 0, DATA[:BLOCK])
    assert not list(small_disk.rglob("*.tmp"))


@needs_root
def test_read_only_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    CleanCache(small_disk, 64 * MIB, 0.0).append(1, 0, [DATA[:1000]])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    cache = CleanCache(small_disk, 64 * MIB, 0.0)
    assert cache.read(1, 0, 1000) == DATA[:1000]
    assert not cache.insert(2, 0, DATA[:100])
    assert not cache.append(1, 1000, [DATA[1000:2000]])
    assert cache.read(1, 0, 1000) == DATA[:1000]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()


@needs_root
def test_floor_of_free_space(small_disk: Path) -> None:
    cache = CleanCache(small_disk, 1024 * MIB, 0.5)
    for segment in range(8):
        cache.insert(segment, 0, DATA[: BLOCK // 2])
        disk = os.statvfs(small_disk)
        assert disk.f_bavail >= disk.f_blocks // 2
    assert cache.used >= BLOCK
    (small_disk / "other").write_bytes(bytes(4 * MIB - cache.used))
    assert not cache.insert(99, 0, DATA[:BLOCK])
    assert cache.used == 0


def test_limit_holds_while_many_write(tmp_path: Path) -> None:
    cache = CleanCache(tmp_path, 5 * BLOCK, 0.0)
    wrong: list[object] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(40):
            segment = dice.randrange(12)
            cache.insert(segment, 0, DATA[: dice.randrange(1, BLOCK)])
            got = cache.read(segment, 0, 1000)
            if got not in (None, DATA[:1000]):
                wrong.append(got)
            if cache.used > 5 * BLOCK:
                wrong.append(cache.used)
            if dice.random() < 0.1:
                cache.forget(segment)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.used == on_disk(tmp_path) <= 5 * BLOCK


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "append", "append", "read", "evict", "forget", "restart"]),
        st.integers(0, 2),
        st.integers(0, 3 * BLOCK),
        st.integers(1, BLOCK),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_returns_what_was_put_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("model")
    cache = CleanCache(directory, 4 * BLOCK, 0.0)
    ends = {0: 0, 1: 0, 2: 0}
    for what, segment, start, size in steps:
        match what:
            case "insert":
                begin = start // BLOCK * BLOCK
                cache.insert(segment, begin, DATA[begin : begin + size])
                assert cache.read(segment, begin, begin + size) == DATA[begin : begin + size]
            case "append":
                begin = ends[segment]
                ends[segment] = min(begin + size, len(DATA))
                cache.append(segment, begin, [DATA[begin : ends[segment]]])
            case "read":
                assert cache.read(segment, start, start + size) in (None, DATA[start : start + size])
            case "evict":
                cache.evict(segment, start, start + size)
                assert cache.read(segment, start, start + size) is None
            case "forget":
                cache.forget(segment)
                assert cache.read(segment, start, start + size) is None
            case _:
                used = cache.used
                cache = CleanCache(directory, 4 * BLOCK, 0.0)
                assert cache.used == used
        assert cache.used == on_disk(directory) <= 4 * BLOCK
    shutil.rmtree(directory)


def test_segments_that_a_power_cut_took_are_forgotten(tmp_path: Path) -> None:
    cache = CleanCache(tmp_path, 64 * MIB, 0.0)
    for segment in (1, 2, 3):
        cache.append(segment, 0, [DATA[:1000]])
    cache.forget_above(1)
    assert [cache.covers(segment, 0, 1000) for segment in (1, 2, 3)] == [True, False, False]
