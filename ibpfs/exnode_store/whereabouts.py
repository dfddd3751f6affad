"""Where a file is, for a person who reads the log: its path, and the segments and depots that its bytes lie on."""

import os

from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.schema import MAX_INO, ROOT_INO

#: Longer paths are cut at their begin; as many segments and depots are named.
_DEEPEST, _MOST = 40, 4


class Whereabouts:
    """Of one open volume. Names no secret."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots

    def path(self, ino: int) -> str:
        """Of one of its names, from the volume's root; of a file without any, the inode's number."""
        ino, snapshot = ino % MAX_INO, ino // MAX_INO
        if snapshot:
            return f"inode {ino} of snapshot {snapshot}"
        parts: list[str] = []
        at = ino
        while at != ROOT_INO and len(parts) < _DEEPEST:
            row = self._db.row("SELECT parent, name FROM dentries WHERE ino = ? LIMIT 1", (at,))
            if row is None:
                return "/".join([f"inode {at}", *reversed(parts)])
            at, name = row
            parts.append(os.fsdecode(name).encode("unicode_escape", "surrogateescape").decode("ascii", "replace"))
        return "/" + "/".join(reversed(parts))

    def of_bytes(self, ino: int, start: int, stop: int) -> str:
        """The segments that hold these bytes of a file, and how the depots are that have them."""
        if ino >= MAX_INO:
            return self.of_depots()
        pieces = self._ledger.extents(ino).find(start, stop)
        segments = dict.fromkeys(piece.source.segment for piece in pieces)
        told = [f"segment {segment}: {self._of_segment(segment)}" for segment in list(segments)[:_MOST]]
        return "; ".join(told) or self.of_depots()

    def _of_segment(self, segment: int) -> str:
        replicas = self._ledger.replicas(segment)
        told = []
        for replica in replicas[:_MOST]:
            depot = self._depots.find(replica.depot)
            where = "a depot that was removed" if depot is None else f"depot {depot.address}"
            state = "" if depot is None else f" {depot.trouble or depot.state}"
            told.append(f"{where} allocation {replica.read.label}{state}{', suspect' if replica.suspect else ''}")
        return ", ".join(told) or "no replica"

    def of_depots(self) -> str:
        """The depots that are not well."""
        ill = [depot for depot in self._depots if not depot.answers]
        return ", ".join(f"depot {depot.address} {depot.trouble or depot.state}" for depot in ill[:_MOST])
