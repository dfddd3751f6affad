"""Policies: what an inode asks of the segments that hold its bytes. A file takes its directory's when it is made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ibpfs.errors import NotADirectory, NotFound, UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.erasure import Code
from ibpfs.exnode_store.schema import ROOT_INO

_COLUMNS = "id, copies, min_copies, labels, code"
_MOST_LABELS = 8
_LONGEST_LABEL = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """A row of table policies."""

    id: int
    copies: int
    min_copies: int
    labels: tuple[str, ...] = ()
    code: str | None = None


def parse_labels(words: Sequence[str]) -> dict[str, str]:
    """Return a depot's labels from 'site=knoxville' and the like. UsageError."""
    labels: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value.strip() or len(value) > _LONGEST_LABEL:
            raise UsageError(f"{word}: a label is NAME=VALUE, such as site=knoxville")
        labels[_check_label(name)] = value
    if len(labels) > _MOST_LABELS:
        raise UsageError(f"a depot has at most {_MOST_LABELS} labels")
    return labels


def _check_label(name: str) -> str:
    if not name or len(name) > _LONGEST_LABEL or not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{name!r} is no name of a label: letters, digits, '-' and '_', such as site")
    return name


def changed(policy: Policy, settings: Mapping[str, str], depots: int) -> Policy:
    """Return a policy with settings as they are typed, for a volume with so many depots. UsageError.

    min-copies is copies - 1, at least 1, where copies are set and it is not.
    """
    if unknown := set(settings) - {"copies", "min-copies", "labels", "code"}:
        raise UsageError(f"{min(unknown)}: no setting of a policy (copies, min-copies, labels, code)")
    if "copies" in settings:
        copies = _number("copies", settings["copies"])
        policy = replace(policy, copies=copies, min_copies=max(1, copies - 1))
    if "min-copies" in settings:
        policy = replace(policy, min_copies=_number("min-copies", settings["min-copies"]))
    if "labels" in settings:
        names = [name for name in settings["labels"].split(",") if name]
        policy = replace(policy, labels=tuple(dict.fromkeys(map(_check_label, names))))
    if "code" in settings:
        text = settings["code"]
        policy = replace(policy, code=None if text == "none" else str(Code.parse(text)))
    if not 1 <= policy.copies <= depots:
        raise UsageError(f"{policy.copies} copies need as many depots; {depots} take new bytes (see ibpfs depots)")
    if not 1 <= policy.min_copies <= policy.copies:
        raise UsageError(f"min-copies must be from 1 to {policy.copies} (the number of copies)")
    if policy.code is not None:
        check_code(Code.parse(policy.code), policy.min_copies, depots)
    return policy


def check_code(code: Code, min_copies: int, depots: int) -> None:
    """UsageError when it needs more depots than there are, or would lower what min_copies promises."""
    if code.shards > depots:
        raise UsageError(f"code {code} needs {code.shards} depots; {depots} take new bytes (see ibpfs depots)")
    if code.m < min_copies - 1:
        raise UsageError(f"code {code}: {min_copies} min-copies outlive {min_copies - 1} depots, so M must be as much")


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 4:
        raise UsageError(f"{name}={text}: must be a number")
    return int(text)


class Policies:
    """Table policies. Rows are never changed: another policy is another row, or one that says the same."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._usual: Policy | None = None

    def get(self, number: int) -> Policy:
        """The policy; the volume's default where there is no such row."""
        remembered = self._db.remembered.policies
        row = remembered.get(number)
        if row is None:
            row = self._db.row(f"SELECT {_COLUMNS} FROM policies WHERE id = ?", (number,))
            if row is None:
                row = self._db.row(f"SELECT {_COLUMNS} FROM policies WHERE id = 1")
            assert row is not None
            remembered[number] = row
        return _policy(*row)

    @property
    def usual(self) -> Policy:
        """The root directory's: what statfs tells room for."""
        if self._usual is None:
            self._usual = self.get(self._db.value("SELECT policy FROM inodes WHERE ino = ?", (ROOT_INO,)) or 1)
        return self._usual

    def of(self, ino: int) -> Policy:
        """What an inode asks for. Raises NotFound."""
        number = self._db.value("SELECT policy FROM inodes WHERE ino = ?", (ino,))
        if number is None:
            raise NotFound(f"there is no inode {ino}")
        return self.get(number)

    def set(self, directory: int, settings: Mapping[str, str]) -> Policy:
        """Change what a directory gives to all that is made in it from now on; return that. Raises NotFound,
        NotADirectory, UsageError."""
        depots = self._db.value("SELECT count(*) FROM depots WHERE role = 'active'")
        wanted = changed(self.of(directory), settings, depots)
        with self._db.transaction() as db:
            if db.value("SELECT mode FROM inodes WHERE ino = ?", (directory,)) & 0o170000 != 0o040000:
                raise NotADirectory("only a directory has a policy of its own; a file has that of where it was made")
            policy = self._find_or_make(wanted)
            db.execute("UPDATE inodes SET policy = ?, seq = ? WHERE ino = ?", (policy.id, db.seq, directory))
        self._usual = None
        return policy

    def _find_or_make(self, wanted: Policy) -> Policy:
        what = wanted.copies, wanted.min_copies, json.dumps(list(wanted.labels)), wanted.code
        number = self._db.value(
            "SELECT id FROM policies WHERE copies = ? AND min_copies = ? AND labels = ? AND code IS ?"
            " AND cache IS NULL ORDER BY id LIMIT 1", what,
        )  # fmt: skip
        if number is None:
            number = self._db.execute(
                "INSERT INTO policies (copies, min_copies, labels, code, seq) VALUES (?, ?, ?, ?, ?)",
                (*what, self._db.seq),
            ).lastrowid
        assert number is not None
        return replace(wanted, id=number)

    def codes(self, *, used: bool = True) -> list[tuple[str, tuple[str, ...]]]:
        """(code, labels) of the policies that some file or directory is under; or of all that there are."""
        only = " AND EXISTS (SELECT 1 FROM inodes i WHERE i.policy = p.id)" if used else ""
        rows = self._db.rows(f"SELECT p.code, p.labels FROM policies p WHERE p.code IS NOT NULL{only}")
        return [(code, tuple(json.loads(labels))) for code, labels in rows]

    @property
    def most_copies(self) -> int:
        """Of the policies that something is under."""
        return self._db.value(
            "SELECT max(copies) FROM policies p WHERE EXISTS (SELECT 1 FROM inodes i WHERE i.policy = p.id)"
            " OR EXISTS (SELECT 1 FROM segments s WHERE s.policy = p.id)"
        ) or 1  # fmt: skip


@lru_cache(maxsize=64)
def _policy(number: int, copies: int, min_copies: int, labels: str, code: str | None) -> Policy:
    return Policy(number, copies, min_copies, tuple(json.loads(labels)), code)
