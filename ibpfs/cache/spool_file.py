"""One file of the spool: a header (magic, format, volume, file id, key epoch, wrapped key) and records back to back.

Each file has a random key, wrapped by the volume key; a record's nonce is its number. A record of a stream (`rec2`,
since format 2) holds its bytes as the depots are to store them: frames of a slice, sealed under that slice's key. Which
frames of which slice they are is sealed under the file's key, as all else of the record.
"""

import errno
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from ibpfs.depot.later import FilePart
from ibpfs.errors import DataError, NoSpace, VolumeError
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.sealing import (
    HEADER,
    TAG_SIZE,
    Buffer,
    FrameError,
    Sealing,
    SliceForm,
    parse_header,
    unseal_into,
)
from ibpfs.ext4 import lay_out
from ibpfs.memory import unfilled

_log = logging.getLogger(__name__)

FORMAT = 2
_FORMATS = (1, 2)
MAGIC = b"IBPSPOOL"
#: magic, format, volume uuid, file id, key epoch; then the wrapped key: nonce and sealed 32 bytes
_FILE = struct.Struct(">8sI16s16sI")
_WRAPPED_SIZE = 12 + 32 + 16
FILE_HEADER_SIZE = _FILE.size + _WRAPPED_SIZE
#: marker, number, length of the sealed body
_RECORD = struct.Struct(">4sQI")
_MARKER, _OF_FRAMES = b"rec1", b"rec2"
#: inode, generation, offset, seq, mtime in ns; the data follow
_BODY = struct.Struct(">QQQQq")
#: Of frames: header of the slice, number of the first frame; sealed as a body of its own, which the frames follow.
_FRAMES = struct.Struct(f">{HEADER.size}sI")
_TAG = _BLOCK = 16
#: A kernel write is at most 1 MiB; anything longer on disk is damage.
MAX_DATA = 4 * 1024 * 1024
RECORD_OVERHEAD = _RECORD.size + _BODY.size + _TAG
_FRAMES_BODY = _BODY.size + _FRAMES.size + _TAG

#: Zeros that a small sync lays out behind the end: to sync what takes their place needs no commit of the file system's
#: journal.
AHEAD = 256 * 1024
_SMALL = 64 * 1024
#: Bytes for which records that are not so small have blocks laid out, where there is so much left of the file.
BLOCKS = 16 * 1024 * 1024

#: Where more than so many of its bytes would be synced for nobody, a file is left.
_WASTE = 1024 * 1024

#: A file is closed at this size, so that the room of old records comes back while new ones arrive.
FILE_SIZE = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Frames:
    """What of a slice a record's data are: from frame number `first` on. `sealing`: what sealed it, in this process."""

    form: SliceForm
    first: int
    sealing: Sealing | None = None


@dataclass(slots=True, eq=False)  # not frozen: that is 0.6 us of each write
class Record:
    """One write in the spool, never changed. Compared by identity: it is the source in maps of dirty extents."""

    file: "SpoolFile"
    position: int  # of the record's header in the file
    number: int
    ino: int
    generation: int
    offset: int
    length: int
    seq: int
    mtime_ns: int
    frames: Frames | None = None


def refusal(error: OSError) -> NoSpace | DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace("the spool's disk is full")
    return DataError(f"the spool cannot be written: {error.strerror}")


class SpoolFile:
    """One file of the spool. `live` counts who needs its records still."""

    def __init__(
        self, path: Path, descriptor: int, keys: VolumeKeys, volume: bytes, key: bytes, file_id: bytes, size: int
    ) -> None:
        self.path = path
        self.size = size
        self.live = 0
        self.has_name = False  # its name is on stable storage
        self.is_closing = False  # deleted, and its room not given back yet
        self.has_failed = False  # a sync has: the kernel may have dropped the bytes, a later success proves nothing
        self._synced = 0
        self._laid = size
        self._blocks = 0  # up to where it has them
        self._descriptor = descriptor
        self._keys = keys
        self._volume = volume
        self._key = key
        self._aead = AESGCM(key)
        self._id = file_id
        self._numbers = 0

    @property
    def is_spent(self) -> bool:
        return self.live == 0 and self.size > FILE_HEADER_SIZE

    @property
    def is_full(self) -> bool:
        return self.size >= FILE_SIZE or self.has_failed

    @property
    def is_waste(self) -> bool:
        """Whether a sync would have to write much that nobody needs."""
        return self.live == 0 and self.unsynced_bytes > _WASTE

    @property
    def unsynced_bytes(self) -> int:
        """How many, from the first one on that may not survive a power cut."""
        return self.size - self._synced

    def begin_sync(self) -> "Sync":
        """Of all that is written now, in any thread."""
        self._lay_ahead()
        return Sync(self, self.size, os.dup(self._descriptor), self.path.parent)

    def sync(self) -> None:
        """At once. OSError when the disk refuses."""
        self._lay_ahead()
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self.has_failed = True
            raise
        self.synced(self.size)

    def synced(self, size: int) -> None:
        """Its name, and so many bytes of it, are on stable storage."""
        self.has_name = True
        self._synced = max(self._synced, size)

    def _lay_ahead(self) -> None:
        if self._laid >= self.size or self.unsynced_bytes > _SMALL:
            return
        with suppress(OSError):  # a full disk is met by whoever writes next
            os.pwrite(self._descriptor, bytes(AHEAD), self.size)
        self._laid = self.size + AHEAD

    def append(
        self, ino: int, generation: int, offset: int, seq: int, mtime_ns: int, data: bytes,
        sealing: Sealing | None = None,
    ) -> Record:  # fmt: skip
        """Seal and write a record at the end. NoSpace when the disk is full; then the file is as before.

        At most MAX_DATA bytes. With `sealing` they are its next frames: whole ones, and no more than it lacks.
        """
        if len(data) > MAX_DATA:
            raise ValueError("a spool record holds at most MAX_DATA bytes")
        number = self._numbers
        # Counted before the write: a number that may have reached the disk is never used again.
        self._numbers += 1
        body = _BODY.pack(ino, generation, offset, seq, mtime_ns)
        frames = None
        if sealing is not None:
            frames = Frames(sealing.form, sealing.length // sealing.form.frame_size, sealing)
            pieces = self._seal_frames(number, body, data, frames, sealing)
        else:
            pieces = self._seal(number, body, data)
        wanted = sum(map(len, pieces))
        if len(data) > _SMALL:
            self._lay_blocks(wanted)
        self._write(pieces, wanted)
        record = Record(self, self.size, number, ino, generation, offset, len(data), seq, mtime_ns, frames)
        self.size += wanted
        self.live += 1
        return record

    def _seal(self, number: int, body: bytes, data: bytes) -> list[Buffer]:
        header = _RECORD.pack(_MARKER, number, len(body) + len(data) + _TAG)
        nonce, associated = number.to_bytes(12, "big"), self._id + header
        if len(data) <= _SMALL:
            return [header, self._aead.encrypt(nonce, body + data, associated)]
        return [header, *self._seal_long(nonce, associated, body, data)]

    def _seal_frames(
        self, number: int, body: bytes, data: bytes, frames: Frames, sealing: Sealing
    ) -> list[Buffer]:
        sealed = sealing.add(data)
        body += _FRAMES.pack(frames.form.header(), frames.first)
        header = _RECORD.pack(_OF_FRAMES, number, _FRAMES_BODY + len(sealed))
        return [header, self._aead.encrypt(number.to_bytes(12, "big"), body, self._id + header), sealed]

    def _seal_long(self, nonce: bytes, associated: bytes, body: bytes, data: bytes) -> list[Buffer]:
        """What AESGCM makes of both, joined, without that copy, nor memory that is cleared before.

        They were 130 of the 1,010 us that a record of 1 MiB took on a busy machine, with its write.
        """
        sealing = Cipher(AES256(self._key), GCM(nonce)).encryptor()
        sealing.authenticate_additional_data(associated)
        sealed = memoryview(unfilled(len(data) + _BLOCK - 1))  # as `update_into` wants it
        start, length = sealing.update(body), sealing.update_into(data, sealed)
        sealing.finalize()
        return [start, sealed[:length], sealing.tag]

    def _lay_blocks(self, wanted: int) -> None:
        if self.size + wanted > self._blocks:
            self._blocks = self.size + max(wanted, min(BLOCKS, FILE_SIZE - self.size))
            lay_out(self._descriptor, self.size, self._blocks - self.size)

    def _write(self, pieces: Sequence[Buffer], wanted: int) -> None:
        try:
            written = os.pwritev(self._descriptor, pieces, self.size)
        except OSError as error:
            self._cut()
            raise refusal(error) from error
        if written < wanted:
            self._cut()
            raise NoSpace("the spool's disk is full")

    def _cut(self) -> None:
        # What a failed write left must not be taken for a record by a later owner.
        with suppress(OSError):
            os.ftruncate(self._descriptor, self.size)
            self._laid = self._blocks = self.size

    def read(self, record: Record, start: int = 0, stop: int | None = None) -> memoryview:
        """Return a record's data, or what of them is in [start, stop). DataError when it is not what was written."""
        stop = record.length if stop is None else stop
        try:
            data = self._read_frames(record, record.frames, start, stop) if record.frames else self._read_all(record)
        except OSError as error:
            raise DataError(f"spool file {self.path.name}: record {record.number}: {error.strerror}") from error
        except (InvalidTag, FrameError):
            raise DataError(f"spool file {self.path.name}: record {record.number} is damaged") from None
        return data if record.frames else data[start:stop]

    def _read_all(self, record: Record) -> memoryview:
        raw = os.pread(self._descriptor, RECORD_OVERHEAD + record.length, record.position)
        header, sealed = raw[: _RECORD.size], memoryview(raw)[_RECORD.size :]
        clear = self._aead.decrypt(record.number.to_bytes(12, "big"), sealed, self._id + header)
        return memoryview(clear)[_BODY.size :]

    def _read_frames(self, record: Record, frames: Frames, start: int, stop: int) -> memoryview:
        """Of those that hold the bytes alone. What they are was told by who wrote them, or by the replay."""
        size, step = frames.form.frame_size, frames.form.frame_size + TAG_SIZE
        first, behind = frames.form.frame_span(start, stop)
        raw = os.pread(self._descriptor, (behind - first) * step, self.stored(record).offset + first * step)
        if len(raw) < (behind - first) * step:
            raise FrameError("frames are cut off")
        data = self._unseal(Frames(frames.form, frames.first + first), memoryview(raw))
        return data[start - first * size : stop - first * size]

    def stored(self, record: Record) -> FilePart:
        """Where the frames of a record lie; as long as somebody holds it."""
        assert record.frames is not None
        length = record.length // record.frames.form.frame_size * TAG_SIZE + record.length
        return FilePart(self._descriptor, record.position + _RECORD.size + _FRAMES_BODY, length)

    def scan(self) -> Iterator[Record]:
        """Yield the sound records in order; stops at what a crash left torn, skips what does not open."""
        end = os.fstat(self._descriptor).st_size
        at = FILE_HEADER_SIZE
        while at + _RECORD.size <= end:
            header = os.pread(self._descriptor, _RECORD.size, at)
            marker, number, length = _RECORD.unpack(header)
            if not _is_possible(marker, length) or at + _RECORD.size + length > end:
                break
            record = self._read_record(header, number, length, at)
            stop = at + _RECORD.size + length
            if record is not None:
                yield record
            elif stop < end and self._is_zero(stop, end):  # cut off, in what was laid out ahead
                break
            else:
                _log.warning("spool file %s: record %d does not open and is dropped", self.path.name, number)
            at = stop
        self.size = at
        if at < end and not self._is_zero(at, end):
            _log.warning("spool file %s: %d bytes at its end are torn and dropped", self.path.name, end - at)

    def _is_zero(self, start: int, stop: int) -> bool:
        """Whether the bytes are those that were laid out ahead."""
        length = min(stop - start, AHEAD + 1)
        return length <= AHEAD and os.pread(self._descriptor, length, start) == bytes(length)

    def _read_record(self, header: bytes, number: int, length: int, at: int) -> Record | None:
        opened = self._open(header, memoryview(os.pread(self._descriptor, length, at + _RECORD.size)), number)
        if opened is None:
            return None
        body, frames, data = opened
        ino, generation, offset, seq, mtime_ns = _BODY.unpack_from(body)
        return Record(self, at, number, ino, generation, offset, len(data), seq, mtime_ns, frames)

    def _open(self, header: bytes, sealed: memoryview, number: int) -> "tuple[bytes, Frames | None, memoryview] | None":
        """Body, frames and data of what follows a record's header; None when that is not what was written."""
        nonce, associated = number.to_bytes(12, "big"), self._id + header
        try:
            if header[:4] != _OF_FRAMES:
                clear = self._aead.decrypt(nonce, sealed, associated)
                return clear[: _BODY.size], None, memoryview(clear)[_BODY.size :]
            body = self._aead.decrypt(nonce, sealed[:_FRAMES_BODY], associated)
            head, first = _FRAMES.unpack_from(body, _BODY.size)
            frames = Frames(parse_header(head, self._volume), first)
            return body, frames, self._unseal(frames, sealed[_FRAMES_BODY:])
        except (InvalidTag, FrameError):
            return None

    def _unseal(self, frames: Frames, stored: memoryview) -> memoryview:
        form = frames.form
        if not form.is_sealed:
            raise FrameError("frames of a slice that is not sealed")
        step = form.frame_size + TAG_SIZE
        data = memoryview(unfilled(len(stored) // step * form.frame_size))
        key = self._keys.slice_key(form.epoch, form.slice_id)
        unseal_into(form, key, frames.first, (stored[at : at + step] for at in range(0, len(stored), step)), data)
        return data

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1  # by then the number may be somebody else's
        if descriptor >= 0:
            os.close(descriptor)

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
        if self.size > BLOCKS:  # the kernel takes 5 ms to give 64 MiB back, without the interpreter's lock
            self.is_closing = True
            trio.lowlevel.start_thread_soon(self.close, self._closed)
        else:
            self.close()

    def _closed(self, _: object) -> None:
        self.is_closing = False


class Sync:
    """Of a spool file, whatever becomes of it meanwhile. `run` may be called in another thread; then `end`."""

    def __init__(self, file: SpoolFile, size: int, descriptor: int, directory: Path) -> None:
        self._file = file
        self._size = size
        self._descriptor = descriptor
        self._directory = directory
        self._with_name = not file.has_name
        self._is_done = False

    def run(self) -> None:
        """OSError when the disk refuses."""
        os.fdatasync(self._descriptor)
        # Of the first file after mkfs the directory's own name, too.
        for place in (self._directory, self._directory.parent) if self._with_name else ():
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._is_done = True

    def end(self) -> None:
        os.close(self._descriptor)
        if self._is_done:
            self._file.synced(self._size)
        else:
            self._file.has_failed = True


def _is_possible(marker: bytes, length: int) -> bool:
    """Whether a record may be so long."""
    if marker == _OF_FRAMES:
        return _FRAMES_BODY < length <= _FRAMES_BODY + 2 * MAX_DATA
    return marker == _MARKER and _BODY.size + _TAG <= length <= _BODY.size + MAX_DATA + _TAG


class CutShort(DataError):
    """A spool file has no whole header."""


def create_file(path: Path, keys: VolumeKeys, volume: bytes) -> SpoolFile:
    """Make one that is not there yet; OSError when the disk refuses, and nothing is left then."""
    key, file_id, nonce, epoch = os.urandom(32), os.urandom(16), os.urandom(12), keys.epoch
    head = _FILE.pack(MAGIC, FORMAT, volume, file_id, epoch)
    wrapped = nonce + AESGCM(keys.spool_key(epoch)).encrypt(nonce, key, head)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    file = SpoolFile(path, descriptor, keys, volume, key, file_id, FILE_HEADER_SIZE)
    try:
        if os.pwrite(descriptor, head + wrapped, 0) != FILE_HEADER_SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.delete()
        raise
    return file


def open_file(path: Path, keys: VolumeKeys, volume: bytes) -> SpoolFile:
    """One that an earlier owner left. VolumeError when it cannot be read, CutShort, DataError when it is not ours."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise VolumeError(f"{path}: {error.strerror}; writes that wait there cannot be read") from error
    try:
        raw = os.pread(descriptor, FILE_HEADER_SIZE, 0)
        key = _unwrap(raw, keys, volume)
    except BaseException:
        os.close(descriptor)
        raise
    file_id, size = _FILE.unpack_from(raw)[3], os.fstat(descriptor).st_size
    return SpoolFile(path, descriptor, keys, volume, key, file_id, size)


def _unwrap(raw: bytes, keys: VolumeKeys, volume: bytes) -> bytes:
    if len(raw) < FILE_HEADER_SIZE:
        raise CutShort("a spool file has no whole header")
    magic, version, origin, _, epoch = _FILE.unpack_from(raw)
    if magic != MAGIC or version not in _FORMATS or origin != volume or epoch not in keys.epochs:
        raise DataError("not a spool file of this volume")
    head, nonce = raw[: _FILE.size], raw[_FILE.size : _FILE.size + 12]
    try:
        return AESGCM(keys.spool_key(epoch)).decrypt(nonce, raw[_FILE.size + 12 :], head)
    except InvalidTag:
        raise DataError("a spool file does not open with this volume's keys") from None
