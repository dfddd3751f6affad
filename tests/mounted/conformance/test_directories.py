"""Reading directories while they change, and large, deep and crowded ones."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.namespace import Namespace
from tests.mounted.volumes import Volume

from .calls import EXCHANGE, Stream, error_of, inside, opened, renameat2

pytestmark = pytest.mark.mounted


def names(count: int, prefix: str = "entry") -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


def fill(directory: Path, count: int, prefix: str = "entry") -> set[str]:
    with inside(directory):
        for name in names(count, prefix):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    return set(names(count, prefix))


class TestStream:
    def test_every_entry_once(self, place: Path) -> None:
        there = fill(place, 500)
        stream = Stream(place)
        found = list(stream)
        assert len(found) == 502
        assert set(found) == there | {".", ".."}
        stream.rewind()
        assert len(list(stream)) == 502
        stream.close()

    def test_places_stay(self, place: Path) -> None:
        """seekdir to what telldir said goes on with the same entry, also after others went and came."""
        fill(place, 400)
        stream = Stream(place)
        order, places = [], []
        while True:
            places.append(stream.tell())
            name = stream.next()
            if name is None:
                break
            order.append(name)
        dice = random.Random(1)
        for _ in range(50):
            at = dice.randrange(len(order))
            stream.seek(places[at])
            assert stream.next() == order[at]
        stays = set(order[::2]) - {".", ".."}
        for name in set(order) - stays - {".", ".."}:
            (place / name).unlink()
        fill(place, 100, "later")
        for at in range(0, len(order), 20):
            if order[at] in stays:
                stream.seek(places[at])
                assert stream.next() == order[at]
        stream.seek(places[0])
        assert stays <= set(stream)
        stream.close()

    def test_kept_over_a_removal_of_all_that_was_read(self, place: Path) -> None:
        """As `rm -r` does it: read some, remove them, read on."""
        there = fill(place, 700)
        stream = Stream(place)
        seen = []
        for name in stream:
            if name not in (".", ".."):
                seen.append(name)
                (place / name).unlink()
        stream.close()
        assert len(seen) == len(set(seen))
        assert set(seen) == there
        assert os.listdir(place) == []

    @pytest.mark.parametrize("change", ["create", "remove", "rename", "replace", "exchange", "link"])
    def test_what_stands_throughout_is_seen_once(self, place: Path, change: str) -> None:
        standing = fill(place, 300, "standing")
        fill(place, 300, "moving")
        stream = Stream(place)
        seen = []
        for number, name in enumerate(stream):
            seen.append(name)
            one, two = place / f"moving-{number % 300}", place / f"moving-{(number + 150) % 300}"
            with_new = place / f"new-{number}"
            match change:
                case "create":
                    os.close(os.open(with_new, os.O_CREAT | os.O_WRONLY))
                case "remove":
                    one.unlink(missing_ok=True)
                case "rename" if one.exists():
                    one.rename(with_new)
                case "replace" if one.exists():
                    one.rename(two)
                case "exchange" if number < 300:
                    renameat2(one, two, EXCHANGE)
                case "link":
                    with_new.hardlink_to(place / "standing-0")
            if number > 1000:
                break  # a directory that grows for ever may be read for ever
        stream.close()
        found = [name for name in seen if name.startswith("standing")]
        assert len(found) == len(set(found))
        assert set(found) == standing

    def test_a_stable_name_is_seen_while_another_process_churns(self, place: Path) -> None:
        standing = fill(place, 200, "standing")
        pid = os.fork()
        if pid == 0:
            number = 0
            while True:
                number += 1
                f = place / f"churn-{number % 50}"
                f.touch()
                f.rename(place / f"moved-{number % 70}")
        try:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                found = [name for name in os.listdir(place) if name.startswith("standing")]
                assert len(found) == 200
                assert set(found) == standing
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)

    def test_types_and_numbers_are_told(self, place: Path) -> None:
        (place / "f").touch()
        (place / "d").mkdir()
        (place / "l").symlink_to("f")
        os.mkfifo(place / "p")
        with os.scandir(place) as entries:
            for entry in entries:
                assert entry.inode() == entry.stat(follow_symlinks=False).st_ino
                kind = entry.is_dir(follow_symlinks=False), entry.is_symlink()
                assert kind == (entry.name == "d", entry.name == "l")
        assert os.stat(place / "d" / "..").st_ino == place.stat().st_ino

    def test_an_open_one_sees_what_came_after_a_rewind(self, place: Path) -> None:
        stream = Stream(place)
        assert set(stream) == {".", ".."}
        (place / "f").touch()
        stream.rewind()
        assert set(stream) == {".", "..", "f"}
        stream.close()


class TestShapes:
    def test_deep(self, place: Path) -> None:
        """Deeper than a path can be long: each directory from the one above."""
        depth, here = 600, os.open(place, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("deeper", dir_fd=here)
            below = os.open("deeper", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        for _ in range(depth):
            above = os.open("..", os.O_RDONLY, dir_fd=here)
            assert os.fstat(above).st_nlink == 3
            os.close(here)
            here = above
        assert os.fstat(here).st_ino == place.stat().st_ino
        os.close(here)
        subprocess.run(["rm", "-r", place / "deeper"], check=True)
        assert os.listdir(place) == []

    def test_wide_directories_count_their_links(self, place: Path) -> None:
        for number in range(300):
            (place / f"{number}").mkdir()
        assert place.stat().st_nlink == 302
        for number in range(0, 300, 2):
            (place / f"{number}").rmdir()
        assert place.stat().st_nlink == 152

    def test_a_farm_of_links(self, place: Path) -> None:
        """Many names of few files, in many directories, as backup programs make them."""
        files = [place / f"file-{number}" for number in range(20)]
        for f in files:
            f.write_bytes(f.name.encode())
        for generation in range(30):
            (place / f"{generation}").mkdir()
            for f in files:
                os.link(f, place / f"{generation}" / f.name)
        assert {f.stat().st_nlink for f in files} == {31}
        for generation in range(0, 30, 2):
            for f in files:
                (place / f"{generation}" / f.name).unlink()
        assert {f.stat().st_nlink for f in files} == {16}
        for f in files:
            f.unlink()
        assert {(place / "29" / f.name).read_bytes() for f in files} == {f.name.encode() for f in files}
        assert (place / "29" / "file-0").stat().st_nlink == 15


@pytest.mark.root
def test_the_most_names_of_one_file(volume: Volume) -> None:
    """65,000, as on ext4; the last few through the kernel, the others through the store."""
    (volume / "f").write_bytes(b"x")
    ino = (volume / "f").stat().st_ino
    volume.umount()
    with Database(volume.root / "exnode_store.sqlite") as db:
        store = Namespace(db, time.time_ns, lambda _, __: 0)
        with db.transaction():
            links = store.create(1, b"links", NewInode(0o040755, 0, 0)).ino
            for number in range(64_997):
                store.link(ino, links, b"%d" % number)
    volume.mount()
    for number in range(2):
        os.link(volume / "f", volume / f"last-{number}")
    assert (volume / "f").stat().st_nlink == 65_000
    assert error_of(os.link, volume / "f", volume / "one-too-many") == "EMLINK"
    (volume / "last-0").unlink()
    os.link(volume / "f", volume / "again")
    with opened(volume / "links", os.O_RDONLY) as directory:
        assert len(os.listdir(directory)) == 64_997


@pytest.mark.root
def test_200_000_entries(volume: Volume) -> None:
    """Made through the store, read and used through the mount."""
    count = 200_000
    volume.umount()
    with Database(volume.root / "exnode_store.sqlite") as db:
        store = Namespace(db, time.time_ns, lambda _, __: 0)
        directory = store.create(1, b"large", NewInode(0o040755, 0, 0)).ino
        for start in range(0, count, 1000):
            with db.transaction():
                for number in range(start, start + 1000):
                    store.create(directory, b"entry-%d" % number, NewInode(0o100644, 0, 0))
    volume.mount()
    large = volume / "large"
    began = time.monotonic()
    found = os.listdir(large)
    assert len(found) == count
    assert set(found) == set(names(count))
    print(f"{count} entries are read in {time.monotonic() - began:.1f} s")
    dice = random.Random(1)
    for _ in range(200):
        number = dice.randrange(count)
        assert (large / f"entry-{number}").stat().st_size == 0
        assert not (large / f"none-{number}").exists()
    (large / "new").touch()
    for number in range(100):
        (large / f"entry-{number}").unlink()
    assert len(set(os.listdir(large))) == count - 99
    assert error_of(large.rmdir) == "ENOTEMPTY"
    stream = Stream(large)
    for _ in range(1000):
        stream.next()
    at, following = stream.tell(), stream.next()
    for _ in range(500):
        stream.next()
    stream.seek(at)
    assert stream.next() == following
    stream.close()
