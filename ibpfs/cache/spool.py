"""The spool: a local log of sealed records, bytes that are not yet on enough depots or have not all their copies.

No mount appends to another mount's file.
"""

import logging
from pathlib import Path

from ibpfs.cache.spool_file import CutShort, Record, SpoolFile, create_file, open_file, refusal
from ibpfs.errors import DataError, VolumeError
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.sealing import Sealing

_log = logging.getLogger(__name__)

#: What is put in the place of `.spool` in the name of a file that does not open.
_ASIDE = ".unreadable"


class Spool:
    """The spool directory of one volume, used by its owner alone."""

    def __init__(self, directory: Path, keys: VolumeKeys, volume: bytes) -> None:
        self.directory = directory
        self._keys = keys
        self._volume = volume
        self._current: SpoolFile | None = None
        self._files: list[SpoolFile] = []
        self._deleted: list[SpoolFile] = []  # whose room was not given back at once
        directory.mkdir(mode=0o700, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes of all spool files."""
        return sum(file.size for file in self._files)

    @property
    def records(self) -> int:
        """How many records somebody still needs, each as often as it is held."""
        return sum(file.live for file in self._files)

    def unsynced(self) -> "list[SpoolFile]":
        """The files with records that somebody needs and that may not survive a power cut."""
        return [file for file in self._files if file.live and (file.unsynced_bytes or file.has_failed)]

    def syncs_up_to(self, limit: int) -> bool:
        """Whether at most so many bytes would have to be synced, and none that a disk has refused to sync."""
        unsynced = self.unsynced()
        return sum(file.unsynced_bytes for file in unsynced) <= limit and not any(file.has_failed for file in unsynced)

    def append(
        self, ino: int, generation: int, offset: int, seq: int, mtime_ns: int, data: bytes,
        sealing: Sealing | None = None,
    ) -> Record:  # fmt: skip
        """Write a record and return it, held; give it back with `release`. With `sealing` as its next frames."""
        if self._current is None or self._current.is_full or (self._current.is_waste and self._none_waits()):
            self._current = self._create()
        return self._current.append(ino, generation, offset, seq, mtime_ns, data, sealing)

    def _none_waits(self) -> bool:
        """Whether no file but the current one waits to be deleted: each has blocks laid out, and a descriptor."""
        return sum(file.is_spent for file in self._files) <= 1

    def hold(self, record: Record) -> None:
        """One more needs a record that somebody holds already."""
        record.file.live += 1

    def release(self, record: Record) -> None:
        """The record's bytes are mapped or void: the spool may forget them."""
        record.file.live -= 1

    @property
    def reclaimable(self) -> bool:
        """Whether there are files that nobody needs."""
        return any(file.is_spent for file in self._files)

    @property
    def is_giving_back(self) -> bool:
        """Whether the disk is about to have more room, by files that are deleted."""
        return any(file.is_closing for file in self._deleted)

    def spent(self) -> "list[SpoolFile]":
        """The files that nobody needs. They may be deleted once the transactions that made it so are synced."""
        spent = [file for file in self._files if file.is_spent]
        if self._current in spent:
            self._current = None  # what is written and let go of during that sync is not covered by it
        return spent

    def delete(self, files: "list[SpoolFile]") -> None:
        """Delete files that `spent` returned; one that is in use again stays."""
        for file in files:
            if file.live == 0 and file in self._files:
                self._drop(file)

    def replay(self) -> list[Record]:
        """Return the held records of the files that earlier owners left, oldest first."""
        records: list[Record] = []
        ours = {file.path for file in self._files}
        for path in sorted(self.directory.glob("*.spool")):
            file = None if path in ours else self._open_old(path)
            if file is None:
                continue
            try:
                found = list(file.scan())
            except VolumeError:  # a slice's key is not among this volume's
                file.close()
                self._set_aside(path)
                continue
            self._files.append(file)
            file.live = len(found)
            records += found
            if not found:
                self._drop(file)
        return records

    def close(self) -> None:
        """Close the files, after a sync of the store; those with records stay for the next owner."""
        for file in list(self._files):
            if file.live == 0:
                file.delete()
            else:
                file.close()
        self._files.clear()
        self._current = None

    def _drop(self, file: SpoolFile) -> None:
        if file is self._current:
            self._current = None
        self._files.remove(file)
        file.delete()
        self._deleted = [one for one in (*self._deleted, file) if one.is_closing]

    def _create(self) -> SpoolFile:
        try:
            file = create_file(self._fresh_path(), self._keys, self._volume)
        except OSError as error:
            raise refusal(error) from error
        self._files.append(file)
        return file

    def _fresh_path(self) -> Path:
        # Above those that were set aside, too: setting aside must never overwrite.
        names = (path.stem for path in self.directory.iterdir() if path.suffix in (".spool", _ASIDE))
        return self.directory / f"{1 + max((int(name, 16) for name in names), default=0):08x}.spool"

    def _open_old(self, path: Path) -> SpoolFile | None:
        try:
            return open_file(path, self._keys, self._volume)
        except CutShort:
            path.unlink()  # a file whose header was never whole holds no answered write
        except DataError:
            self._set_aside(path)
        return None

    def _set_aside(self, path: Path) -> None:
        """For a person to see."""
        _log.warning("spool file %s does not open with this volume's keys; it is set aside", path.name)
        path.rename(path.with_suffix(_ASIDE))
