"""Load by many processes at once: our own on one file and one directory, and the programs made for it."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from .running import run
from .volumes import Volume

pytestmark = pytest.mark.mounted

Work = Callable[[int], None]
#: File-system stressors of stress-ng that look at what they did (--verify).
STRESSORS = ("dentry", "rename", "hdd", "dir", "link", "symlink", "xattr", "seek", "flock", "lockf", "utime", "chmod",
             "copy-file", "iomix", "getdent", "dirdeep", "mmap", "sync-file", "fallocate", "handle")  # fmt: skip


def at_once(count: int, work: Work) -> None:
    """`work(number)` in so many processes, none of which may fail."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                work(number)
                os._exit(0)
            except BaseException as error:
                print(f"process {number}: {error!r}", flush=True)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * count


def record(number: int, turn: int, size: int) -> bytes:
    return (hashlib.blake2b(f"{number} {turn}".encode()).digest() * (size // 64 + 1))[:size]


def test_on_one_file(shared: Volume, place: Path) -> None:
    """Each process owns every fourth record, which lie across pages and frames; all are synced and read back."""
    size, count = 5003, 400
    (place / "f").touch()

    def work(who: int) -> None:
        dice = random.Random(who)
        descriptor = os.open(place / "f", os.O_RDWR)
        for turn in range(2):
            mine = list(range(who, count, 4))
            dice.shuffle(mine)
            for number in mine:
                os.pwrite(descriptor, record(number, turn, size), number * size)
                if dice.random() < 0.02:
                    os.fsync(descriptor)
                back = dice.choice(mine)
                found = os.pread(descriptor, size, back * size)
                assert found in (record(back, 0, size), record(back, 1, size), bytes(len(found))), back
        os.close(descriptor)

    at_once(4, work)
    shared.drop_cache()
    data = (place / "f").read_bytes()
    assert data == b"".join(record(number, 1, size) for number in range(count))


def test_in_one_directory(shared: Volume, place: Path) -> None:
    """Processes make, link, move and remove names among those of the others; what each one left is there."""

    def work(who: int) -> None:
        dice = random.Random(who)
        mine: dict[str, bytes] = {}
        for number in range(250):
            name, data = f"{who}-{number}", b"%d of %d" % (number, who)
            (place / name).write_bytes(data)
            mine[name] = data
            if dice.random() < 0.5:
                old = dice.choice(list(mine))
                (place / old).rename(place / f"{old}-moved")
                mine[f"{old}-moved"] = mine.pop(old)
            if dice.random() < 0.3:
                (place / dice.choice(list(mine))).rename(place / "everybodys")
                mine = {left: data for left, data in mine.items() if (place / left).exists()}
            if dice.random() < 0.3:
                gone = dice.choice(list(mine))
                (place / gone).unlink()
                del mine[gone]
            if number % 50 == 0:
                assert len(list(place.iterdir())) >= len(mine)
        for name, data in mine.items():
            assert (place / name).read_bytes() == data
        assert {path.name for path in place.glob(f"{who}-*")} == set(mine)

    at_once(4, work)
    shared.drop_cache()
    for path in place.iterdir():
        who, number = path.name.split("-")[:2] if "-" in path.name else ("", "")
        assert not who or path.read_bytes() == b"%d of %d" % (int(number), int(who))


def test_stress_ng(shared: Volume, place: Path) -> None:
    words = [word for name in STRESSORS for word in (f"--{name}", "1")]
    done = run("stress-ng", "--temp-path", place, "--verify", "--timeout", "5s", "--mmap-file", *words, cwd=place)
    assert "successful run completed" in done.stdout + done.stderr
    assert list(place.iterdir()) == []


def test_dbench(place: Path) -> None:
    done = run("dbench", "-c", "/usr/share/dbench/client.txt", "-D", place, "-t", "4", "3")
    assert "Throughput" in done.stdout
    assert "ERROR" not in done.stdout


def test_bonnie(place: Path) -> None:
    """Its files alone; with its directories (`-n 1`) it takes half a minute: docs/recorded-runs.md."""
    words = ("-d", place, "-u", os.geteuid(), "-r", "8", "-q", "-m", "ibpfs", "-f", "-s", "16M:64k", "-n", "0")
    run("bonnie++", *words, env={"PATH": f"{os.environ['PATH']}:/usr/sbin"})
