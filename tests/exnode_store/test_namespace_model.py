"""The namespace against plain dictionaries: any sequence of changes, with readers half-way through directories."""

import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ibpfs.errors import IbpfsError, NameExists, NotFound
from ibpfs.exnode_store.attributes import COLUMNS, NewInode
from ibpfs.exnode_store.database import Database, create_database
from ibpfs.exnode_store.inodes import create_root
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.renaming import EXCHANGE, NOREPLACE
from ibpfs.exnode_store.schema import ROOT_INO
from tests.exnode_store.conftest import Clock

KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFLNK)

_IN_DIRECTORY = "SELECT id, name, ino FROM dentries WHERE parent = ?"

entry_names = st.sampled_from([b"a", b"b", b"c", b"\xff", b"n" * 255])
flags = st.sampled_from([0, 0, NOREPLACE, EXCHANGE])


class Refused(Exception):
    """What the model says cannot be done, by the name of the namespace's exception."""


@dataclass
class Model:
    """kinds: inode -> type. entries: directory -> name -> inode. up: directory -> its parent."""

    kinds: dict[int, int] = field(default_factory=lambda: {ROOT_INO: stat.S_IFDIR})
    entries: dict[int, dict[bytes, int]] = field(default_factory=lambda: {ROOT_INO: {}})

    def find(self, parent: int, name: bytes) -> int:
        if name not in self.entries[parent]:
            raise Refused("NotFound")
        return self.entries[parent][name]

    def is_directory(self, ino: int) -> bool:
        return self.kinds[ino] == stat.S_IFDIR

    def parent(self, directory: int) -> int | None:
        return next((up for up, inside in self.entries.items() if directory in inside.values()), None)

    def names_of(self, ino: int) -> int:
        return sum(list(inside.values()).count(ino) for inside in self.entries.values())

    def nlink(self, ino: int) -> int:
        if not self.is_directory(ino):
            return self.names_of(ino)
        alive = ino == ROOT_INO or self.names_of(ino)
        return 2 + sum(self.is_directory(below) for below in self.entries[ino].values()) if alive else 0

    def create(self, parent: int, name: bytes, ino: int, kind: int) -> None:
        self.entries[parent][name] = ino
        self.kinds[ino] = kind
        if kind == stat.S_IFDIR:
            self.entries[ino] = {}

    def unlink(self, parent: int, name: bytes) -> None:
        if self.is_directory(self.find(parent, name)):
            raise Refused("IsADirectory")
        del self.entries[parent][name]

    def rmdir(self, parent: int, name: bytes) -> None:
        ino = self.find(parent, name)
        if not self.is_directory(ino):
            raise Refused("NotADirectory")
        if self.entries[ino]:
            raise Refused("NotEmpty")
        del self.entries[parent][name]

    def is_inside(self, directory: int | None, above: int) -> bool:
        while directory is not None and directory != above:
            directory = self.parent(directory)
        return directory == above

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, how: int) -> None:
        source = self.find(parent, name)
        target = self.entries[new_parent].get(new_name)
        if target is not None and how == NOREPLACE:
            raise Refused("NameExists")
        if self.is_directory(source) and self.is_inside(new_parent, source):
            raise Refused("InvalidArgument")
        if how == EXCHANGE and target is None:
            raise Refused("NotFound")
        if source == target:
            return
        if how == EXCHANGE:
            assert target is not None
            if self.is_directory(target) and self.is_inside(parent, target):
                raise Refused("InvalidArgument")
            self.entries[parent][name] = target
        else:
            self.check_replaceable(source, target)
            del self.entries[parent][name]
        self.entries[new_parent][new_name] = source

    def check_replaceable(self, source: int, target: int | None) -> None:
        if target is None:
            return
        if self.is_directory(source) and not self.is_directory(target):
            raise Refused("NotADirectory")
        if self.is_directory(target) and not self.is_directory(source):
            raise Refused("IsADirectory")
        if self.is_directory(target) and self.entries[target]:
            raise Refused("NotEmpty")


@dataclass
class Reader:
    """Somebody in the middle of listing a directory."""

    directory: int
    cookie: int
    seen: list[bytes]
    standing: set[bytes]  # names that have been there since it began
    ever: set[bytes]


class NamespaceMachine(RuleBasedStateMachine):
    @initialize(most=st.sampled_from([2, 8, 1000]), large=st.sampled_from([1, 2, 1000]), listing=st.booleans())
    def begin(self, most: int, large: int, listing: bool) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="ibpfs-names-")
        path = Path(self.directory.name) / "store"
        create_database(path, {"format": "1"})
        self.db = Database(path)
        clock = Clock()
        with self.db.transaction():
            create_root(self.db, clock, 0, 0)
        self.db.remembered.names.most, self.db.remembered.names.large = most, large
        self.listing = listing  # after each step, after which all names are in memory
        self.names = Namespace(self.db, clock, lambda ino, limit: 0)
        self.model = Model()
        self.readers: list[Reader] = []
        for parent, name, kind in (
            (1, b"a", stat.S_IFDIR),
            (2, b"b", stat.S_IFDIR),
            (1, b"c", stat.S_IFREG),
            (1, b"d", stat.S_IFREG),
        ):
            made = self.names.create(parent, name, NewInode(kind | 0o755, 0, 0))
            self.model.create(parent, name, made.ino, kind)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.directory.cleanup()

    def alive(self) -> list[int]:
        return [ino for ino in self.model.entries if self.model.nlink(ino)]

    def pick_directory(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(self.alive()), label="directory")

    def pick_entry(self, data: st.DataObject) -> tuple[int, bytes]:
        """A name that stands, now and then one that does not."""
        standing = [(parent, name) for parent in self.alive() for name in self.model.entries[parent]]
        return data.draw(st.sampled_from([*standing, (ROOT_INO, b"none")]), label="entry")

    def pick_place(self, data: st.DataObject) -> tuple[int, bytes]:
        """Where to put something: as often on top of what stands there as not."""
        free = st.tuples(st.sampled_from(self.alive()), entry_names)
        return self.pick_entry(data) if data.draw(st.booleans()) else data.draw(free, label="place")

    def both(self, operation: str, *arguments: object) -> None:
        """Do it in both; they must agree on whether it can be done, and why not."""
        expected = actual = None
        try:
            getattr(self.model, operation)(*arguments)
        except Refused as error:
            expected = str(error)
        try:
            getattr(self.names, operation)(*arguments)
        except IbpfsError as error:
            actual = type(error).__name__
        assert actual == expected, f"{operation}{arguments}"
        for reader in self.readers:
            now = set(self.model.entries[reader.directory])
            reader.standing &= now
            reader.ever |= now

    @rule(data=st.data(), name=entry_names, kind=st.sampled_from(KINDS))
    def create(self, data: st.DataObject, name: bytes, kind: int) -> None:
        parent = self.pick_directory(data)
        new = NewInode(kind | 0o755, 0, 0, target=b"to" if kind == stat.S_IFLNK else None)
        if name in self.model.entries[parent]:
            with pytest.raises(NameExists):
                self.names.create(parent, name, new)
            return
        made = self.names.create(parent, name, new)
        assert made.ino not in self.model.kinds
        self.model.create(parent, name, made.ino, kind)
        for reader in self.readers:
            reader.ever |= set(self.model.entries[reader.directory])

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        (parent, name), (new_parent, new_name) = self.pick_entry(data), self.pick_place(data)
        ino = self.model.entries[parent].get(name)
        if ino is None or self.model.is_directory(ino) or new_name in self.model.entries[new_parent]:
            return
        self.names.link(ino, new_parent, new_name)
        self.model.entries[new_parent][new_name] = ino
        for reader in self.readers:
            reader.ever |= set(self.model.entries[reader.directory])

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        self.both("unlink", *self.pick_entry(data))

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        self.both("rmdir", *self.pick_entry(data))

    @rule(data=st.data(), how=flags)
    def rename(self, data: st.DataObject, how: int) -> None:
        self.both("rename", *self.pick_entry(data), *self.pick_place(data), how)

    @rule()
    def reap(self) -> None:
        for ino in self.names.unlinked():
            assert self.names.reap(ino)
            del self.model.kinds[ino]
            self.model.entries.pop(ino, None)
            self.readers = [reader for reader in self.readers if reader.directory != ino]

    @precondition(lambda self: len(self.readers) < 3)
    @rule(data=st.data())
    def open_directory(self, data: st.DataObject) -> None:
        directory = self.pick_directory(data)
        present = set(self.model.entries[directory])
        self.readers.append(Reader(directory, 2, [], present, set(present)))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), limit=st.sampled_from([1, 2, 1000]))
    def read_on(self, data: st.DataObject, limit: int) -> None:
        """A reader with the large limit finishes."""
        reader = data.draw(st.sampled_from(self.readers), label="reader")
        entries = self.names.readdir(reader.directory, reader.cookie, limit)
        cookies = [reader.cookie, *(cookie for cookie, _, _ in entries)]
        assert cookies == sorted(set(cookies))
        reader.cookie = cookies[-1]
        reader.seen += [name for _, name, _ in entries]
        assert set(reader.seen) <= reader.ever
        if limit == 1000:
            self.readers.remove(reader)
            assert all(reader.seen.count(name) == 1 for name in reader.standing)

    @rule()
    def forget(self) -> None:
        self.db.remembered.clear()

    @rule(data=st.data(), name=entry_names)
    def look(self, data: st.DataObject, name: bytes) -> None:
        directory = self.pick_directory(data)
        try:
            found = self.names.lookup(directory, name).ino
        except NotFound:
            assert name not in self.model.entries[directory]
        else:
            assert found == self.model.entries[directory][name]

    @invariant()
    def what_is_remembered_is_what_the_tables_say(self) -> None:
        for ino, row in self.db.remembered.rows.items():
            assert self.db.row(f"SELECT {COLUMNS} FROM inodes WHERE ino = ?", (ino,)) == row
        attributed = {ino for (ino,) in self.db.rows("SELECT ino FROM xattrs")}
        assert not self.db.remembered.plain & attributed
        names = self.db.remembered.names
        for parent, here in names.of.items():
            found = {name: (id_, ino) for id_, name, ino in self.db.rows(_IN_DIRECTORY, (parent,))}
            assert here.items() <= found.items()
            assert parent not in names.whole or here == found
        for parent in (*names.whole, *names.filters):
            assert not any(names.lacks(parent, name) for _, name, _ in self.db.rows(_IN_DIRECTORY, (parent,)))

    @invariant()
    def names_and_links_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        for ino, kind in self.model.kinds.items():
            inode = self.names.inode(ino)
            assert stat.S_IFMT(inode.mode) == kind
            assert inode.nlink == self.model.nlink(ino)
        for directory, inside in self.model.entries.items():
            assert {name: ino for _, name, ino in self.db.rows(_IN_DIRECTORY, (directory,))} == inside
            if self.listing:
                found = self.names.readdir(directory, 0, 1000)
                assert {name: inode.ino for _, name, inode in found[2:]} == inside
                above = self.model.parent(directory)
                assert found[1][2].ino == (directory if above is None else above)
        alive = [ino for ino in self.model.kinds if self.model.nlink(ino)]
        assert self.db.files == len(alive)
        assert sorted(self.names.unlinked()) == sorted(self.model.kinds.keys() - alive)


TestNamespace = NamespaceMachine.TestCase
TestNamespace.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
