"""Finding names in the trash, and giving them back: a name, or a tree, a transaction of some names at a time.

A restore that a crash has cut short is taken up by asking for it again: what came back is a directory by then, and what
is still in the trash below it follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ibpfs.errors import NameExists, NotADirectory, NotFound
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.dentries import DentryTable, Place
from ibpfs.exnode_store.inodes import InodeTable
from ibpfs.exnode_store.namespace import Namespace, check_name
from ibpfs.exnode_store.schema import ROOT_INO

#: Names that one transaction gives back: four rows each.
_AT_ONCE = 200
#: Rows that one look at the list reads.
_PAGE = 1000
#: More directories above a name than any path has.
_DEEPEST = 2048


@dataclass(frozen=True, slots=True)
class Discarded:
    """A row of table trash."""

    id: int
    parent: int
    name: bytes
    ino: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A row and what a person wants to know of it. `path` in the volume, as far as it is known."""

    id: int
    path: bytes
    deleted_at: float
    mode: int
    size: int


class Restoring:
    """Works on the tables that `Namespace` and its trash work on."""

    def __init__(self, db: Database, names: Namespace, inodes: InodeTable) -> None:
        self._db = db
        self._names = names
        self._inodes = inodes
        self._dentries = DentryTable(db)

    # Listing

    def page(self, after: int, *, every: bool) -> tuple[list[Listed], int | None]:
        """Some rows with higher numbers, and after which the next page begins; None at the end.

        Without `every`, only those whose directory is there: not what is inside of deleted ones.
        """
        rows = self._db.rows(
            "SELECT t.id, t.parent, t.name, t.deleted_at, i.mode, i.size, coalesce(p.nlink, 0) FROM"
            " (SELECT * FROM trash WHERE id > ? ORDER BY id LIMIT ?) t JOIN inodes i ON i.ino = t.ino"
            " LEFT JOIN inodes p ON p.ino = t.parent ORDER BY t.id",
            (after, _PAGE),
        )
        paths: dict[int, bytes] = {}
        listed = [
            Listed(number, self._path(parent, paths) + name, deleted_at, mode, size)
            for number, parent, name, deleted_at, mode, size, links in rows
            if every or links
        ]
        return listed, rows[-1][0] if rows else None

    def _path(self, directory: int, known: dict[int, bytes]) -> bytes:
        """With a slash at its end."""
        parts: list[bytes] = []
        at = directory
        while at != ROOT_INO and at not in known and len(parts) < _DEEPEST:
            row = self._db.row("SELECT parent, name FROM dentries WHERE ino = ?", (at,)) or self._db.row(
                "SELECT parent, name FROM trash WHERE ino = ? ORDER BY id DESC", (at,)
            )
            if row is None:
                parts.append(b"?")
                break
            at = row[0]
            parts.append(row[1])
        above = known.get(at, b"/" if at == ROOT_INO else b"")
        known[directory] = above + b"".join(part + b"/" for part in reversed(parts))
        return known[directory]

    # Finding

    def find(self, path: bytes) -> Discarded:
        """The youngest name in the trash that had this path. NotFound."""
        *above, name = _parts(path)
        directories = {ROOT_INO}
        for part in above:
            directories = {
                ino
                for directory in directories
                for table in ("dentries", "trash")
                for (ino,) in self._db.rows(
                    f"SELECT d.ino FROM {table} d JOIN inodes i ON i.ino = d.ino WHERE parent = ? AND name = ?"
                    " AND (i.mode & 61440) = 16384",
                    (directory, part),
                )
            }
        rows = [
            row
            for directory in directories
            for row in self._db.rows(
                "SELECT id, parent, name, ino FROM trash WHERE parent = ? AND name = ?", (directory, name)
            )
        ]
        if not rows:
            raise NotFound("is not in the trash")
        return Discarded(*max(rows))

    def numbered(self, number: int) -> Discarded:
        """NotFound."""
        row = self._db.row("SELECT id, parent, name, ino FROM trash WHERE id = ?", (number,))
        if row is None:
            raise NotFound(f"number {number} is not in the trash")
        return Discarded(*row)

    def directory_at(self, path: bytes) -> int:
        """A directory that is there. NotFound, NotADirectory."""
        ino = ROOT_INO
        for part in [one for one in path.split(b"/") if one]:
            ino = self._names.lookup(ino, part).ino
        if not self._names.inode(ino).is_directory:
            raise NotADirectory("not a directory")
        return ino

    # Restoring

    def restore(self, one: Discarded, target: Place | None = None) -> Iterator[list[Place]]:
        """Give a name back, and all that is in the trash below it; where it was, or at `target`.

        Yields the places that came back, after each transaction. Directories above it come back without what else was
        in them. NameExists, NotFound: nothing came back.
        """
        if target is None:
            places: list[Place] = []
            parent = self._parent(one.parent, places, 0)
            target = parent, one.name
        else:
            places = []
        check_name(target[1])
        with self._db.transaction():
            if not self._give_back(one, target):
                raise NameExists("a file of that name is there now")
        yield [*places, target]
        if self._names.inode(one.ino).is_directory:
            yield from self.restore_below(one.ino)

    def restore_below(self, directory: int) -> Iterator[list[Place]]:
        """Whatever was in a directory, the youngest of each name; what is there now stays."""
        waiting = [directory]
        while waiting:
            parent, name = waiting.pop(), b""
            while some := self._next(parent, name):
                name = some[-1].name
                with self._db.transaction():
                    back = [one for one in some if self._give_back(one, (parent, one.name))]
                yield [(parent, one.name) for one in back]
                waiting += [one.ino for one in back if self._names.inode(one.ino).is_directory]

    def _next(self, parent: int, name: bytes) -> Sequence[Discarded]:
        rows = self._db.rows(
            "SELECT max(id), parent, name, ino FROM trash WHERE parent = ? AND name > ? GROUP BY name ORDER BY name"
            " LIMIT ?",
            (parent, name, _AT_ONCE),
        )
        return [Discarded(*row) for row in rows]

    def _parent(self, directory: int, places: list[Place], depth: int) -> int:
        """The directory, there again if it was deleted, or what is in its place now."""
        try:
            inode = self._names.inode(directory)
        except NotFound:
            raise NotFound("its directory is gone; say where to with --to") from None
        if inode.nlink:
            return directory
        row = self._db.row("SELECT id, parent, name, ino FROM trash WHERE ino = ? ORDER BY id DESC", (directory,))
        if row is None or depth > _DEEPEST:
            raise NotFound("its directory is gone; say where to with --to")
        one = Discarded(*row)
        parent = self._parent(one.parent, places, depth + 1)
        try:
            there = self._names.lookup(parent, one.name)
        except NotFound:
            with self._db.transaction():
                self._give_back(one, (parent, one.name))
            places.append((parent, one.name))
            return directory
        if not there.is_directory:
            raise NameExists("where its directory was is a file now; say where to with --to")
        return there.ino

    def _give_back(self, one: Discarded, target: Place) -> bool:
        """In the caller's transaction; False when the name is taken."""
        db = self._db
        self._inodes.directory(target[0])
        try:
            self._dentries.enter(target, one.ino)
        except NameExists:
            return False
        db.execute("DELETE FROM trash WHERE id = ?", (one.id,))
        inode = self._inodes.get(one.ino)
        if not inode.nlink:
            db.files += 1
        inode.nlink = 2 if inode.is_directory else inode.nlink + 1
        self._inodes.save(inode)
        self._inodes.touch_directory(target[0], links=inode.is_directory)
        return True


def _parts(path: bytes) -> list[bytes]:
    parts = [one for one in path.split(b"/") if one]
    if not parts:
        raise NotFound("the root directory is not in the trash")
    return parts
