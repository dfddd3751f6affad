"""Putting a tree, with what is stored of it, under another policy: states in the store that a task advances.

First the inodes, directory by directory; then the segments, one by one: those of one policy change theirs, of others
what belongs elsewhere moves; copies that are too many go, and those in one failure domain spread. What is missing then
is the warmer's.
"""

from collections.abc import Callable, Mapping

from ibpfs.errors import UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.policies import Policies, Policy

#: Entries of a directory that one transaction takes: each is up to two rows.
_ENTRIES = 400


class PolicyWalks:
    """Tables policy_walks and policy_settling. Synchronous; each step is one transaction of at most 1,000 rows."""

    def __init__(self, db: Database, policies: Policies) -> None:
        self._db = db
        self._policies = policies
        self.changed: Callable[[Mapping[int, int]], None] = _nobody  # told the policies, by inode, that were changed

    def set(self, directory: int, settings: Mapping[str, str], *, recursive: bool) -> Policy:
        """Change a directory's policy, and with `recursive` begin to do so with all that is in it. As Policies.set."""
        if self.walking:
            raise UsageError("a tree is being put under another policy; try again when it is")
        with self._db.transaction() as db:
            policy = self._policies.set(directory, settings)
            if recursive:
                self._enter(directory, policy.id)
                db.execute("INSERT OR REPLACE INTO policy_settling (id, after, seq) VALUES (1, 0, ?)", (db.seq,))
        return policy

    @property
    def walking(self) -> bool:
        return self._db.value("SELECT 1 FROM policy_walks LIMIT 1") is not None

    def _enter(self, directory: int, policy: int) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO policy_walks (directory, policy, after, seq) VALUES (?, ?, 0, ?)",
            (directory, policy, self._db.seq),
        )

    def step(self) -> int:
        """Put some entries of one directory under its policy; return how many there were, 0 when the walk is over."""
        changed: dict[int, int] = {}
        with self._db.transaction() as db:
            row = db.row("SELECT directory, policy, after FROM policy_walks LIMIT 1")
            if row is None:
                return 0
            directory, policy, after = row
            entries = db.rows(
                "SELECT d.id, i.ino, i.mode & 61440 = 16384 FROM dentries d JOIN inodes i ON i.ino = d.ino"
                " WHERE d.parent = ? AND d.id > ? ORDER BY d.id LIMIT ?", (directory, after, _ENTRIES),
            )  # fmt: skip
            for _, ino, is_directory in entries:
                db.execute("UPDATE inodes SET policy = ?, seq = ? WHERE ino = ?", (policy, db.seq, ino))
                changed[ino] = policy
                if is_directory:
                    self._enter(ino, policy)
            if entries:
                db.execute(
                    "UPDATE policy_walks SET after = ?, seq = ? WHERE directory = ?",
                    (entries[-1][0], db.seq, directory),
                )
            else:
                db.execute("DELETE FROM policy_walks WHERE directory = ?", (directory,))
        self.changed(changed)
        return max(1, len(entries))

    # Segments

    def to_settle(self) -> tuple[int, int] | None:
        """(number behind which, number up to which) segments are to be looked at; None: nothing is to be done."""
        row = self._db.row("SELECT after, last FROM policy_settling")
        if row is None or self.walking:
            return None
        if row[1] is None:
            last = self._db.value("SELECT seq FROM sqlite_sequence WHERE name = 'segments'") or 0
            with self._db.transaction() as db:
                db.execute("UPDATE policy_settling SET last = ?, seq = ?", (last, db.seq))
            return row[0], last
        return row[0], row[1]

    def next_segment(self, after: int, last: int) -> int | None:
        """The next closed segment of our own; None behind the last."""
        found: int | None = self._db.value(
            "SELECT id FROM segments WHERE id > ? AND id <= ? AND state = 1 AND length > 0"
            " AND id NOT IN (SELECT segment FROM imported) ORDER BY id LIMIT 1", (after, last),
        )  # fmt: skip
        return found

    def settled(self, segment: int | None) -> None:
        """Segments up to this one are done; None: all."""
        with self._db.transaction() as db:
            if segment is None:
                db.execute("DELETE FROM policy_settling")
            else:
                db.execute("UPDATE policy_settling SET after = ?, seq = ?", (segment, db.seq))

    def wanted(self, segment: int) -> dict[int, int]:
        """The policies of the files that its slices belong to, by slice; a dead one that stays has none."""
        return dict(
            self._db.rows(
                "SELECT s.id, i.policy FROM slices s JOIN mappings m ON m.slice = s.id JOIN inodes i ON i.ino = m.ino"
                " WHERE s.segment = ? GROUP BY s.id", (segment,),
            )
        )  # fmt: skip

    def retag(self, segment: int, policy: int) -> None:
        """All that lives in a segment is under this policy now."""
        with self._db.transaction() as db:
            db.execute("UPDATE segments SET policy = ?, seq = ? WHERE id = ?", (policy, db.seq, segment))


def _nobody(_: Mapping[int, int]) -> None:
    """Where no file is open."""
