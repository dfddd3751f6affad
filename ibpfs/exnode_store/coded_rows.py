"""The ledger's rows of segments that are stored as shards of an erasure code. Knows no file."""

from collections.abc import Callable, Iterable, Sequence

from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.erasure import Code, Coded
from ibpfs.exnode_store.ledger_rows import Replica
from ibpfs.exnode_store.schema import SHARDS
from ibpfs.exnode_store.sealing import Buffer, digest

#: Segments of which it is known in memory how they are stored.
_MOST_KNOWN = 100_000


class CodedRows:
    """Tables coded and shards. What changes something joins the caller's transaction."""

    def __init__(self, db: Database, now: Callable[[], float]) -> None:
        self._db = db
        self.now = now
        self._coded: dict[int, Coded | None] = {}
        self._any_coded = db.value("SELECT 1 FROM coded LIMIT 1") is not None

    def coded(self, segment: int) -> Coded | None:
        """How a segment is cut into shards; None: it is stored in whole copies."""
        if not self._any_coded:
            return None
        if segment not in self._coded:
            row = self._db.row("SELECT k, m, shard_length FROM coded WHERE segment = ?", (segment,))
            if len(self._coded) > _MOST_KNOWN:
                self._coded.clear()
            self._coded[segment] = None if row is None else Coded(Code(row[0], row[1]), row[2])
        return self._coded[segment]

    def shards(self, segment: int) -> list[int]:
        """The numbers of the shards that are wanted of a coded segment."""
        rows = self._db.rows("SELECT shard FROM shards WHERE segment = ? ORDER BY shard", (segment,))
        return [shard for (shard,) in rows]

    def is_sound_shard(self, segment: int, shard: int, data: Buffer) -> bool:
        """Whether these are all bytes of the shard."""
        expected = self._db.value("SELECT digest FROM shards WHERE segment = ? AND shard = ?", (segment, shard))
        return bool(expected == digest(int(self._db.facts["digest_seed"], 16), [data]))

    def note_coded(self, segment: int, coded: Coded, shards: Sequence[Buffer]) -> None:
        """All replicas of a segment are shards from now on, and these are their bytes."""
        db, seed = self._db, int(self._db.facts["digest_seed"], 16)
        known = db.facts.get("features", "").split()
        if SHARDS not in known:
            db.set_fact("features", " ".join([*known, SHARDS]))
        db.execute(
            "INSERT INTO coded (segment, k, m, shard_length, seq) VALUES (?, ?, ?, ?, ?)",
            (segment, coded.code.k, coded.code.m, coded.shard_length, db.seq),
        )
        db.executemany(
            "INSERT INTO shards (segment, shard, digest, seq) VALUES (?, ?, ?, ?)",
            [(segment, number, digest(seed, [data]), db.seq) for number, data in enumerate(shards)],
        )
        self._any_coded = True
        self._coded.pop(segment, None)

    def forget_coded(self, segment: int) -> None:
        """None of a segment's replicas is a shard any more."""
        if self._any_coded:
            self._db.execute("DELETE FROM shards WHERE segment = ?", (segment,))
            self._db.execute("DELETE FROM coded WHERE segment = ?", (segment,))
            self._coded.pop(segment, None)

    def to_code(self, codes: Sequence[str], least: int, limit: int) -> list[tuple[int, str]]:
        """(segment, code) of some closed, large segments of our own that their policy wants in one of these codes, and
        which are not coded.

        Not of those that others count on as whole copies, or that will be compacted soon.
        """
        marks = ", ".join("?" * len(codes))
        rows: list[tuple[int, str]] = self._db.rows(
            f"SELECT s.id, p.code FROM segments s JOIN policies p ON p.id = s.policy WHERE p.code IN ({marks})"
            f" AND s.length >= ? AND s.live * 2 >= s.length AND {_MAY_CODE} ORDER BY s.id LIMIT ?",
            (*codes, least, self.now(), limit),
        )
        return rows

    def may_code(self, segment: int, length: int) -> bool:
        """Whether a segment, if it is of this length still, may be stored as shards: nobody counts on whole copies."""
        found = self._db.value(
            f"SELECT 1 FROM segments s WHERE s.id = ? AND s.length = ? AND {_MAY_CODE}", (segment, length, self.now())
        )
        return found is not None

    @property
    def coded_bytes(self) -> int:
        """Bytes of the segments that are stored as shards, each counted once."""
        total: int = self._db.value("SELECT coalesce(sum(length), 0) FROM segments JOIN coded ON segment = id")
        return total

    @property
    def most_shards(self) -> int:
        """Of the segments that are coded; 0: none is."""
        return self._db.value("SELECT max(k + m) FROM coded") or 0


#: Closed segments `s` of our own, in whole copies, that are in no window of an export (until ?), and that nobody holds.
_MAY_CODE = (
    "s.state = 1 AND s.id NOT IN (SELECT segment FROM coded) AND s.id NOT IN (SELECT segment FROM imported)"
    " AND s.id NOT IN (SELECT segment FROM held_segments)"
    " AND s.id NOT IN (SELECT segment FROM windows WHERE until > ?)"
)


def survivors(replicas: Iterable[Replica], coded: Coded | None) -> int:
    """How many of these replicas may be lost before the bytes are; less than 0: those are lost already.

    Of shards, different ones count.
    """
    some = list(replicas)
    if coded is None:
        return len(some) - 1
    return len({one.shard for one in some}) - coded.code.k
