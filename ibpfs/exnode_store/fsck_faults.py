"""What a check of the exNode store finds, and what becomes of it: said in one line, repaired, counted.

Knows no terminal: who decides and who is told are callables.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ibpfs.config import VolumePaths
from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.database import Database

#: Stands for the number of the transaction in progress among the parameters of `Checkup.statement`.
SEQ = object()

_log = logging.getLogger(__name__)

#: Directories above a name that are named; a loop ends here, too.
_DEPTH = 100
_SHOWN_EXTENTS = 10

IS_DIRECTORY = "(mode & 61440) = 16384"
IS_REGULAR = "(mode & 61440) = 32768"
IS_SYMLINK = "(mode & 61440) = 40960"


@dataclass(frozen=True)
class Fault:
    """Something that breaks an invariant: `what` names the object, `cure` says in the past tense what `repair` does.

    Without a repair nothing here can mend it. A repair that is not `safe` guesses, or gives something up.
    """

    what: str
    cure: str = ""
    repair: Callable[[], object] | None = None
    safe: bool = True


@dataclass
class Outcome:
    """How many faults were repaired, how many were left; `unverified`: depots that could not be asked."""

    corrected: int = 0
    left: int = 0
    unverified: int = 0


Consent = Callable[[Fault], bool]
Tell = Callable[[str], None]
Progress = Callable[[int, int, str], None]


def never(_: Fault) -> bool:
    return False


def if_safe(fault: Fault) -> bool:
    return fault.safe


def always(_: Fault) -> bool:
    return True


class Checkup:
    """One check of one volume, which the caller owns. `db` is there once the database could be opened."""

    def __init__(
        self, paths: VolumePaths, consent: Consent, tell: Tell, *, read_only: bool = False,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.paths = paths
        self.read_only = read_only
        self.outcome = Outcome()
        self.progress = progress or _silent
        self._consent: Consent = never if read_only else consent
        self._tell = tell
        self._db: Database | None = None

    @property
    def db(self) -> Database:
        assert self._db is not None
        return self._db

    @db.setter
    def db(self, db: Database) -> None:
        self._db = db

    def statement(self, sql: str, *parameters: object) -> Callable[[], object]:
        """A repair that is one statement."""
        return lambda: self.db.execute(sql, tuple(self.db.seq if one is SEQ else one for one in parameters))

    def note(self, text: str) -> None:
        """Say something that is no fault."""
        self._tell(text)

    def handle_all(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.handle(fault)

    def handle(self, fault: Fault) -> bool:
        """Repair the fault if that can be and is wanted; say it; return whether it was repaired."""
        done, fate = self._try(fault)
        self._tell(f"{fault.what}: {fate}")
        if done:
            self.outcome.corrected += 1
        else:
            self.outcome.left += 1
        return done

    def _try(self, fault: Fault) -> tuple[bool, str]:
        if fault.repair is None:
            return False, fault.cure or "cannot be repaired"
        if not self._consent(fault):
            return False, "not repaired"
        try:
            if self._db is None:
                fault.repair()
            else:
                with self._db.transaction():
                    fault.repair()
        except (sqlite3.Error, IbpfsError, OSError) as error:
            _log.debug("repair failed", exc_info=error)
            return False, f"could not be repaired ({error})"
        return True, fault.cure

    # Names for people

    def inode(self, ino: int) -> str:
        """`inode 12 (/a/b)`; without the path when it has none."""
        path = self.path(ino)
        return f"inode {ino} ({path})" if path else f"inode {ino}"

    def path(self, ino: int) -> str:
        """A path of the inode in this volume, '' when none leads to the root."""
        if ino == 1:
            return "/"
        parts: list[str] = []
        above: int | None = ino
        while above != 1:
            row = self.db.row("SELECT parent, name FROM dentries WHERE ino = ? LIMIT 1", (above,))
            if row is None or len(parts) > _DEPTH:
                return ""
            above = row[0]
            parts.append(show(row[1]))
        return "/" + "/".join(reversed(parts))

    def files_of(self, where: str, parameters: tuple[int, ...]) -> list[str]:
        """Files and extents whose bytes are in the slices `s` that `where` selects, one text per file."""
        rows = self.db.rows(
            "SELECT m.ino, m.start, m.stop FROM slices s JOIN mappings m ON m.slice = s.id"
            f" WHERE {where} ORDER BY m.ino, m.start",
            parameters,
        )
        runs: dict[int, list[tuple[int, int]]] = {}
        for ino, start, stop in rows:
            mine = runs.setdefault(ino, [])
            if mine and mine[-1][1] == start:
                mine[-1] = mine[-1][0], stop
            else:
                mine.append((start, stop))
        return [f"{self.inode(ino)} {_extents(mine)}" for ino, mine in runs.items()]


def show(name: bytes | str) -> str:
    """A name as one printable word."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _extents(runs: list[tuple[int, int]]) -> str:
    text = ", ".join(f"{start} to {stop}" for start, stop in runs[:_SHOWN_EXTENTS])
    more = len(runs) - _SHOWN_EXTENTS
    return f"bytes {text}" + (f" and {more} more extents" if more > 0 else "")


def _silent(done: int, total: int, text: str) -> None:
    """Where progress goes when nobody looks."""
