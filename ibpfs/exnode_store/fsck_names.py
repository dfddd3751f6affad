"""Checks of inodes and names: every inode is what its type says, has its names, and hangs in one tree below the root.

What lost its name is given one in /lost+found.
"""

import stat
import time
from collections.abc import Callable, Iterator
from functools import partial

from ibpfs.errors import InvalidArgument
from ibpfs.exnode_store import acl
from ibpfs.exnode_store.attributes import MAX_TARGET, NewInode
from ibpfs.exnode_store.fsck_faults import IS_DIRECTORY, IS_REGULAR, IS_SYMLINK, SEQ, Checkup, Fault, show
from ibpfs.exnode_store.inodes import InodeTable
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.schema import MAX_INO, ROOT_INO

_TYPES = ", ".join(str(kind) for kind in (
    stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK
))  # fmt: skip
_SPOKEN = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link"}
_LOST_AND_FOUND = b"lost+found"


# Inodes

def root(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    mode = db.value("SELECT mode FROM inodes WHERE ino = ?", (ROOT_INO,))
    if mode is None:
        make = partial(_make_inode, checkup, ROOT_INO, stat.S_IFDIR | 0o755)
        yield Fault("inode 1 (/): the root directory is missing", "made anew", make)
    elif not stat.S_ISDIR(mode):
        change = _mode_setter(checkup, ROOT_INO, stat.S_IFDIR | stat.S_IMODE(mode))
        yield Fault("inode 1 (/): the root is not a directory", "made one", change)


def missing_inodes(checkup: Checkup) -> Iterator[Fault]:
    """An inode without a row of which the contents are still there."""
    rows = checkup.db.rows(
        "SELECT ino, max(kind) FROM ("
        " SELECT DISTINCT ino, 32768 AS kind FROM mappings UNION SELECT ino, 40960 FROM symlinks"
        " UNION SELECT DISTINCT parent, 49152 FROM dentries"
        ") WHERE ino NOT IN (SELECT ino FROM inodes) AND ino > 0 AND ino < ? GROUP BY ino",
        (MAX_INO,),
    )
    for ino, kind in rows:
        kind = stat.S_IFDIR if kind == 49152 else kind
        mode = kind | (0o777 if kind == stat.S_IFLNK else 0o700 if kind == stat.S_IFDIR else 0o600)
        what = {stat.S_IFREG: "mappings", stat.S_IFLNK: "a target"}.get(kind, "entries")
        repair = partial(_make_inode, checkup, ino, mode)
        yield Fault(f"inode {ino}: missing, though it has {what}", f"made anew as a {_SPOKEN[kind]}", repair)


def _make_inode(checkup: Checkup, ino: int, mode: int) -> None:
    db, now = checkup.db, time.time_ns()
    owner, _, group = db.facts.get("root_owner", "0:0").partition(":")
    size, allocated, covers = db.rows(
        "SELECT coalesce(max(stop), 0), coalesce(sum(stop - start), 0), coalesce(max(covers), 0) FROM mappings"
        " WHERE ino = ?", (ino,)
    )[0]  # fmt: skip
    size = size or db.value("SELECT length(target) FROM symlinks WHERE ino = ?", (ino,)) or 0
    names = db.value("SELECT count(*) FROM dentries WHERE ino = ?", (ino,))
    links = _subdirectories(checkup, ino) + 2 if stat.S_ISDIR(mode) else max(1, names)
    db.execute(
        "INSERT INTO inodes (ino, generation, version, policy, mode, nlink, uid, gid, rdev, size, allocated, atime_ns,"
        " mtime_ns, ctime_ns, birth_ns, spooled, seq) VALUES (?, 1, ?, 1, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, 0, ?)",
        (ino, covers + 1, mode, links, int(owner), int(group), size, allocated, now, now, now, now, db.seq),
    )
    db.next_ino = max(db.next_ino, ino + 1)


def types(checkup: Checkup) -> Iterator[Fault]:
    """Type bits that are none; and entries, which only a directory has."""
    db = checkup.db
    for ino, mode in db.rows(f"SELECT ino, mode FROM inodes WHERE (mode & 61440) NOT IN ({_TYPES})"):
        kind = _evident_type(checkup, ino)
        yield Fault(
            f"{checkup.inode(ino)}: mode {mode:o} has no known type",
            f"made a {_SPOKEN[kind]}",
            _mode_setter(checkup, ino, kind | stat.S_IMODE(mode)),
        )
    for ino, mode in db.rows(
        f"SELECT ino, mode FROM inodes WHERE NOT {IS_DIRECTORY} AND ino IN (SELECT parent FROM dentries)"
    ):
        yield _entries_of_a_file(checkup, ino, mode)
    for ino, count in db.rows(
        f"SELECT ino, count(*) FROM mappings JOIN inodes USING (ino) WHERE NOT {IS_REGULAR} GROUP BY ino"
    ):
        repair = checkup.statement("DELETE FROM mappings WHERE ino = ?", ino)
        yield Fault(f"{checkup.inode(ino)}: {count} mappings, though it is no file", "mappings removed", repair)


def _evident_type(checkup: Checkup, ino: int) -> int:
    db = checkup.db
    if db.value("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (ino,)):
        return stat.S_IFDIR
    if db.value("SELECT 1 FROM symlinks WHERE ino = ?", (ino,)):
        return stat.S_IFLNK
    return stat.S_IFREG


def _entries_of_a_file(checkup: Checkup, ino: int, mode: int) -> Fault:
    what = f"{checkup.inode(ino)}: has entries, though it is no directory"
    has_content = checkup.db.value(
        "SELECT 1 FROM mappings WHERE ino = ?1 UNION SELECT 1 FROM symlinks WHERE ino = ?1", (ino,)
    )
    if has_content:
        repair = checkup.statement("DELETE FROM dentries WHERE parent = ?", ino)
        return Fault(what, "entries removed", repair)
    return Fault(what, "made a directory", _mode_setter(checkup, ino, stat.S_IFDIR | stat.S_IMODE(mode)))


def _mode_setter(checkup: Checkup, ino: int, mode: int) -> Callable[[], object]:
    sql = "UPDATE inodes SET mode = ?, version = version + 1, seq = ? WHERE ino = ?"
    return checkup.statement(sql, mode, SEQ, ino)


def symlinks(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    for (ino,) in db.rows(
        f"SELECT ino FROM symlinks WHERE ino NOT IN (SELECT ino FROM inodes WHERE {IS_SYMLINK})"
    ):
        repair = checkup.statement("DELETE FROM symlinks WHERE ino = ?", ino)
        yield Fault(f"{checkup.inode(ino)}: has a target, though it is no symbolic link", "target removed", repair)
    for (ino,) in db.rows(
        "SELECT i.ino FROM inodes i LEFT JOIN symlinks s ON s.ino = i.ino"
        f" WHERE {IS_SYMLINK} AND nlink > 0 AND (target IS NULL OR length(target) NOT BETWEEN 1 AND {MAX_TARGET})"
    ):
        repair = partial(_delete_inode, checkup, ino)
        yield Fault(f"{checkup.inode(ino)}: a symbolic link without target", "removed", repair, safe=False)
    for ino, size, length in db.rows(
        "SELECT i.ino, i.size, length(target) FROM inodes i JOIN symlinks s ON s.ino = i.ino"
        f" WHERE {IS_SYMLINK} AND size != length(target)"
    ):
        repair = checkup.statement("UPDATE inodes SET size = ?, seq = ? WHERE ino = ?", length, SEQ, ino)
        yield Fault(f"{checkup.inode(ino)}: size is {size}, its target has {length} bytes", "size corrected", repair)


def _delete_inode(checkup: Checkup, ino: int) -> None:
    for table in ("dentries", "symlinks", "xattrs", "voids", "inodes"):
        checkup.db.execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))


def xattrs(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    for ino, count in db.rows(
        "SELECT ino, count(*) FROM xattrs WHERE ino NOT IN (SELECT ino FROM inodes) GROUP BY ino"
    ):
        repair = checkup.statement("DELETE FROM xattrs WHERE ino = ?", ino)
        yield Fault(f"inode {ino}: missing, though it has {count} extended attributes", "removed", repair)
    for ino, name, value in db.rows(
        "SELECT ino, name, value FROM xattrs WHERE name IN (?, ?)", (acl.ACCESS, acl.DEFAULT)
    ):
        try:
            acl.parse(value)
        except InvalidArgument:
            repair = checkup.statement("DELETE FROM xattrs WHERE ino = ? AND name = ?", ino, name)
            yield Fault(f"{checkup.inode(ino)}: {show(name)} is no access list", "removed", repair)


# Names

def dentries(checkup: Checkup) -> Iterator[Fault]:
    """Entries that cannot be."""
    for row, parent, name, trouble in checkup.db.rows(
        "SELECT d.id, d.parent, d.name, CASE"
        " WHEN i.ino IS NULL THEN 'names inode ' || d.ino || ', which does not exist'"
        " WHEN d.ino = 1 THEN 'names the root directory'"
        " WHEN d.parent NOT IN (SELECT ino FROM inodes) THEN 'is in a directory that does not exist'"
        " ELSE 'is not a name' END"
        " FROM dentries d LEFT JOIN inodes i ON i.ino = d.ino"
        " WHERE i.ino IS NULL OR d.ino = 1 OR d.parent NOT IN (SELECT ino FROM inodes) OR d.name IN (x'2e', x'2e2e')"
        " OR instr(d.name, x'2f') OR instr(d.name, x'00') OR length(d.name) NOT BETWEEN 1 AND 255"
    ):
        what = f"entry {show(name)} of {checkup.inode(parent)}: {trouble}"
        yield Fault(what, "removed", checkup.statement("DELETE FROM dentries WHERE id = ?", row))
    yield from _low_cookies(checkup)


def _low_cookies(checkup: Checkup) -> Iterator[Fault]:
    for row, parent, name in checkup.db.rows("SELECT id, parent, name FROM dentries WHERE id < 3"):
        what = f"entry {show(name)} of {checkup.inode(parent)}: its id {row} is the cookie of a dot"
        yield Fault(what, "numbered anew", partial(_renumber, checkup, row))


def _renumber(checkup: Checkup, row: int) -> None:
    db = checkup.db
    parent, name, ino = db.rows("SELECT parent, name, ino FROM dentries WHERE id = ?", (row,))[0]
    db.execute("DELETE FROM dentries WHERE id = ?", (row,))
    db.execute("INSERT INTO dentries (parent, name, ino, seq) VALUES (?, ?, ?, ?)", (parent, name, ino, db.seq))


def tree(checkup: Checkup) -> Iterator[Fault]:
    """A directory has one name, and is not below itself."""
    db = checkup.db
    for (ino,) in db.rows(
        f"SELECT d.ino FROM dentries d JOIN inodes i ON i.ino = d.ino WHERE {IS_DIRECTORY}"
        " GROUP BY d.ino HAVING count(*) > 1"
    ):
        entries = db.rows("SELECT id, parent, name FROM dentries WHERE ino = ? ORDER BY id", (ino,))
        kept = next((row for row, parent, _ in entries if checkup.path(parent)), entries[0][0])
        for row, parent, name in entries:
            if row != kept:
                repair = checkup.statement("DELETE FROM dentries WHERE id = ?", row)
                what = f"directory inode {ino}: has one more name, {show(name)} in {checkup.inode(parent)}"
                yield Fault(what, "this name removed", repair)
    for ino in _loops(checkup):
        repair = checkup.statement("DELETE FROM dentries WHERE ino = ?", ino)
        yield Fault(f"directory inode {ino}: is below itself, out of reach of the root", "taken out there", repair)


def _loops(checkup: Checkup) -> list[int]:
    """One directory of every loop."""
    above: dict[int, int] = dict(checkup.db.rows(
        "WITH RECURSIVE reached (ino) AS (SELECT 1"
        " UNION SELECT d.ino FROM reached r JOIN dentries d ON d.parent = r.ino"
        f" JOIN inodes i ON i.ino = d.ino WHERE {IS_DIRECTORY})"
        f" SELECT d.ino, d.parent FROM dentries d JOIN inodes i ON i.ino = d.ino WHERE {IS_DIRECTORY}"
        " AND d.ino NOT IN (SELECT ino FROM reached)"
    ))  # fmt: skip
    found: list[int] = []
    settled: set[int] = set()
    for ino in above:
        trail: list[int] = []
        at: int | None = ino
        while at is not None and at not in settled:
            settled.add(at)
            trail.append(at)
            at = above.get(at)
        if at in trail:
            found.append(min(trail[trail.index(at) :]))
    return found


def orphans(checkup: Checkup) -> Iterator[Fault]:
    """Inodes without a name that should have one; one with nlink 0 and nothing in it may go."""
    for ino, nlink in checkup.db.rows(
        "SELECT ino, nlink FROM inodes i WHERE ino != 1 AND NOT EXISTS (SELECT 1 FROM dentries d WHERE d.ino = i.ino)"
        " AND (nlink > 0 OR EXISTS (SELECT 1 FROM dentries d WHERE d.parent = i.ino))"
    ):
        what = f"inode {ino}: has no name, though its link count is {nlink}"
        yield Fault(what, f"connected as /lost+found/#{ino}", partial(_reconnect, checkup, ino))


def _reconnect(checkup: Checkup, ino: int) -> None:
    db = checkup.db
    table = InodeTable(db, time.time_ns)
    directory = _lost_and_found(checkup)
    db.execute(
        "INSERT INTO dentries (parent, name, ino, seq) VALUES (?, ?, ?, ?)", (directory, b"#%d" % ino, ino, db.seq)
    )
    inode = table.get(ino)
    inode.nlink = _subdirectories(checkup, ino) + 2 if inode.is_directory else 1
    table.save(inode)
    table.touch_directory(directory, links=inode.is_directory)


def _lost_and_found(checkup: Checkup) -> int:
    db, name = checkup.db, _LOST_AND_FOUND
    number = 0
    while True:
        row = db.row(
            "SELECT i.ino, i.mode FROM dentries d JOIN inodes i ON i.ino = d.ino WHERE d.parent = 1 AND d.name = ?",
            (name,),
        )
        if row is None:
            names = Namespace(db, time.time_ns, lambda ino, limit: 0)
            return names.create(ROOT_INO, name, NewInode(stat.S_IFDIR | 0o700, 0, 0)).ino
        if stat.S_ISDIR(row[1]):
            found: int = row[0]
            return found
        number += 1
        name = b"%s.%d" % (_LOST_AND_FOUND, number)


def trash(checkup: Checkup) -> Iterator[Fault]:
    """Deleted names of what is gone, or of directories that are there: these have one name."""
    for row, name, ino in checkup.db.rows(
        "SELECT t.id, t.name, t.ino FROM trash t LEFT JOIN inodes i ON i.ino = t.ino WHERE i.ino IS NULL"
        f" OR (i.nlink > 0 AND {IS_DIRECTORY})"
    ):
        repair = checkup.statement("DELETE FROM trash WHERE id = ?", row)
        what = f"{show(name)} in the trash: names inode {ino}, which is not deleted or does not exist"
        yield Fault(what, "removed", repair)


def link_counts(checkup: Checkup) -> Iterator[Fault]:
    db = checkup.db
    wrong = db.rows(
        "SELECT i.ino, i.nlink, count(d.id) AS n FROM inodes i JOIN dentries d ON d.ino = i.ino"
        f" WHERE NOT {IS_DIRECTORY} GROUP BY i.ino HAVING i.nlink != n"
    )
    wrong += db.rows(
        "SELECT ino, nlink, n FROM (SELECT i.ino, i.nlink, 2 + (SELECT count(*) FROM dentries e JOIN inodes c"
        " ON c.ino = e.ino WHERE e.parent = i.ino AND (c.mode & 61440) = 16384) AS n"
        f" FROM inodes i WHERE {IS_DIRECTORY} AND (i.ino = 1 OR i.ino IN (SELECT ino FROM dentries)))"
        " WHERE nlink != n"
    )
    for ino, nlink, right in wrong:
        repair = checkup.statement(
            "UPDATE inodes SET nlink = ?, version = version + 1, seq = ? WHERE ino = ?", right, SEQ, ino
        )
        yield Fault(f"{checkup.inode(ino)}: link count is {nlink}, should be {right}", "corrected", repair)


def _subdirectories(checkup: Checkup, ino: int) -> int:
    count: int = checkup.db.value(
        f"SELECT count(*) FROM dentries d JOIN inodes i ON i.ino = d.ino WHERE d.parent = ? AND {IS_DIRECTORY}", (ino,)
    )
    return count
