"""Mapping functions: how a slice's file bytes become stored bytes, and back.

A stored slice is a 40-byte header in clear, then the frames. Sealed functions put a 16-byte tag behind each frame;
the plain one puts the frames' 8-byte checksums in a trailer. Raw slices are file bytes and nothing else: nobody can
verify them; only an exNode that was imported has such. Knows keys and bytes; no file, no depot, no clock.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ibpfs.errors import DataError
from ibpfs.memory import sendable, unfilled

AES_256_GCM = 1
CHACHA20_POLY1305 = 2
PLAIN_XXH3 = 3
RAW = 4
FUNCTIONS = {
    AES_256_GCM: "aes-256-gcm/1", CHACHA20_POLY1305: "chacha20-poly1305/1", PLAIN_XXH3: "plain-xxh3/1", RAW: "none/1",
}  # fmt: skip
FUNCTION_CODES = {name: code for code, name in FUNCTIONS.items()}

FORMAT = 1
FRAME_SIZE = 64 * 1024
TAG_SIZE = 16
CHECKSUM_SIZE = 8
MAX_SLICE = 4 * 1024 * 1024

#: magic, format, function, reserved, frame size, epoch, length in file bytes, slice id
HEADER = struct.Struct(">4sBBHIIQ16s")
MAGIC = b"IBPs"
#: volume, slice id, function, format, frame size, frame number, last-frame flag
_ASSOCIATED = struct.Struct(">16s16sBBIIB")

DIGEST_NAME = "xxh3-128-seeded"
#: Of slices that this volume did not store: the digest is empty.
NO_DIGEST = "none"

Buffer = bytes | bytearray | memoryview


class Aead(Protocol):
    """What AESGCM and ChaCha20Poly1305 have in common."""

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def encrypt_into(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer) -> int: ...
    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def decrypt_into(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer) -> int: ...


_AEADS: dict[int, Callable[[bytes], Aead]] = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}
SEALED = frozenset(_AEADS)
_WITH_HEADER = {*_AEADS, PLAIN_XXH3}


class FrameError(DataError):
    """Stored bytes are not what was sealed: changed, moved, cut, or under another key."""


@dataclass(frozen=True, slots=True)
class SliceForm:
    """All that must be known of a slice, beside its key, to read its stored bytes. `length` in file bytes."""

    slice_id: bytes
    origin: bytes
    epoch: int
    function: int
    frame_size: int
    length: int

    @property
    def frames(self) -> int:
        return -(-self.length // self.frame_size)

    @property
    def is_sealed(self) -> bool:
        """Whether it takes a key to read it."""
        return self.function in _AEADS

    @property
    def header_size(self) -> int:
        return 0 if self.function == RAW else HEADER.size

    @property
    def overhead(self) -> int:
        """Stored bytes that a frame adds in place (not in the trailer)."""
        return TAG_SIZE if self.is_sealed else 0

    @property
    def stored_length(self) -> int:
        if self.function in _AEADS:  # asked for three times on a small file's way to the depots
            return HEADER.size + self.length + -(-self.length // self.frame_size) * TAG_SIZE
        per_frame = CHECKSUM_SIZE if self.function == PLAIN_XXH3 else self.overhead
        return self.header_size + self.length + self.frames * per_frame

    def frame_span(self, start: int, stop: int) -> tuple[int, int]:
        """First frame and the frame behind the last, of those that hold file bytes [start, stop)."""
        return start // self.frame_size, -(-stop // self.frame_size)

    def stored_span(self, first: int, behind: int) -> tuple[int, int]:
        """Stored bytes [begin, end) of frames [first, behind), from the slice's header on."""
        step = self.frame_size + self.overhead
        body_end = self.header_size + self.length + self.frames * self.overhead
        return self.header_size + first * step, min(self.header_size + behind * step, body_end)

    def checksum_span(self, first: int, behind: int) -> tuple[int, int]:
        """Where in the stored bytes the plain function's checksums of frames [first, behind) lie."""
        trailer = HEADER.size + self.length
        return trailer + first * CHECKSUM_SIZE, trailer + behind * CHECKSUM_SIZE

    def header(self) -> bytes:
        if self.function == RAW:
            return b""
        return HEADER.pack(
            MAGIC, FORMAT, self.function, 0, self.frame_size, self.epoch, self.length, self.slice_id
        )

    def _associated(self, number: int) -> bytes:
        return _ASSOCIATED.pack(
            self.origin, self.slice_id, self.function, FORMAT, self.frame_size, number, number == self.frames - 1
        )

    def _checksum(self, number: int, frame: Buffer) -> bytes:
        seed = xxhash.xxh3_64_intdigest(self._associated(number))
        return xxhash.xxh3_64_digest(frame, seed)


@dataclass(frozen=True, slots=True)
class ForeignSlice:
    """What a document tells of a slice: the part of the file begins at its byte `offset`. `key` None: not told."""

    form: SliceForm
    offset: int
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "ForeignSlice":
        """The reverse of `as_row`. Raises KeyError, TypeError, ValueError."""
        form = SliceForm(
            bytes.fromhex(row["slice"]), bytes.fromhex(row["origin"]), int(row["epoch"]),
            FUNCTION_CODES[row["function"]], int(row["frame_size"]), int(row["length"]),
        )  # fmt: skip
        key = row.get("key")
        return cls(form, int(row["offset"]), None if key is None else bytes.fromhex(key))

    def as_row(self) -> dict[str, Any]:
        """For JSON; holds the key."""
        form = self.form
        return {
            "function": FUNCTIONS[form.function], "slice": form.slice_id.hex(), "origin": form.origin.hex(),
            "epoch": form.epoch, "frame_size": form.frame_size, "length": form.length, "offset": self.offset,
            "key": None if self.key is None else self.key.hex(),
        }  # fmt: skip


def seal(form: SliceForm, key: bytes, *parts: Buffer) -> list[bytes | memoryview]:
    """Return the stored bytes of a slice, in pieces. Never seal a slice id twice: frame numbers are nonces.

    Its bytes may come in several parts, which need not be joined for this.
    """
    if sum(map(len, parts)) != form.length:
        raise ValueError("data and form differ in length")
    if 0 < form.length <= form.frame_size and form.is_sealed:  # in one piece: 4 us less of a small write
        frame = parts[0] if len(parts) == 1 else b"".join(parts)
        return [form.header() + _AEADS[form.function](key).encrypt(bytes(12), frame, form._associated(0))]
    views = [memoryview(part) for part in parts]
    if form.function == RAW:
        return [*views]
    frames = _frames(views, form.frame_size)
    if form.function == PLAIN_XXH3:
        checksums = b"".join(form._checksum(number, frame) for number, frame in enumerate(frames))
        return [form.header(), *views, checksums]
    aead = _AEADS[form.function](key)
    # `encrypt` clears the memory that it takes, frame by frame: of 970 us of a busy machine per MiB 270, with the join.
    sealed = sendable(form.stored_length)
    sealed[: HEADER.size] = form.header()
    _seal_frames(form, aead, 0, frames, sealed[HEADER.size :])
    return [sealed]


def _seal_frames(form: SliceForm, aead: Aead, first: int, frames: Iterable[Buffer], into: memoryview) -> None:
    at = 0
    for number, frame in enumerate(frames, first):
        end = at + len(frame) + TAG_SIZE
        aead.encrypt_into(number.to_bytes(12, "big"), frame, form._associated(number), into[at:end])
        at = end


class Sealing:
    """A slice that is sealed run by run, each of whole frames, as its bytes come. Not where nothing is sealed.

    A frame's number is its nonce: what was added is never taken back, nor added again. `seed` as in `digest`.
    """

    def __init__(self, form: SliceForm, key: bytes, seed: int) -> None:
        self.form = form
        self.length = 0  # file bytes that are sealed
        self.is_usable = True  # nobody has stored it, or spoilt it
        self._aead = _AEADS[form.function](key)
        self._digest = xxhash.xxh3_128(form.header(), seed=seed)

    @property
    def is_whole(self) -> bool:
        return self.length == self.form.length

    def add(self, data: Buffer) -> memoryview:
        """The next frames, as they are stored. Whole ones, and no more than it lacks."""
        size, view = self.form.frame_size, memoryview(data)
        frames = [view[at : at + size] for at in range(0, len(view), size)]
        sealed = memoryview(unfilled(len(view) + len(frames) * TAG_SIZE))
        first, self.length = self.length // size, self.length + len(view)
        _seal_frames(self.form, self._aead, first, frames, sealed)
        self._digest.update(sealed)
        return sealed

    def digest(self) -> bytes:
        """Of the stored bytes, once it is whole."""
        return self._digest.digest()


def _frames(parts: Iterable[memoryview], size: int) -> Iterator[Buffer]:
    """So many bytes each, but for the last one, without copying those that lie in one part."""
    begun: list[memoryview] = []
    lacking = size
    for part in parts:
        if begun:
            begun.append(part[:lacking])
            part, lacking = part[lacking:], lacking - len(begun[-1])
            if lacking:
                continue
            yield b"".join(begun)
            begun, lacking = [], size
        whole = len(part) - len(part) % size
        yield from (part[at : at + size] for at in range(0, whole, size))
        if whole < len(part):
            begun, lacking = [part[whole:]], size - (len(part) - whole)
    if begun:
        yield b"".join(begun)


def unseal(form: SliceForm, key: bytes, first: int, stored: Buffer, checksums: Buffer = b"") -> list[bytes]:
    """Return the clear frames of `stored`, one or more whole stored frames from number `first` on.

    `checksums` are those frames' trailer entries (plain function only).
    Raises FrameError when a frame is not exactly what was sealed at that place.
    """
    view = memoryview(stored)
    if not view:
        raise FrameError("no frame where one should be")
    step = form.frame_size + form.overhead
    pieces = [view[at : at + step] for at in range(0, len(view), step)]
    if form.function == PLAIN_XXH3:
        return _check_plain(form, first, pieces, memoryview(checksums))
    if form.function == RAW:
        return [bytes(piece) for piece in pieces]
    aead = _AEADS[form.function](key)
    try:
        return [
            aead.decrypt((first + at).to_bytes(12, "big"), piece, form._associated(first + at))
            for at, piece in enumerate(pieces)
        ]
    except InvalidTag:
        raise FrameError("a frame does not open: changed bytes or another key") from None


def unseal_into(form: SliceForm, key: bytes, first: int, frames: Iterable[Buffer], into: memoryview) -> None:
    """Fill `into` with the clear bytes of sealed frames, from number `first` on, each given as it is stored.

    Raises FrameError as `unseal` does; what is in `into` then is nobody's.
    """
    aead = _AEADS[form.function](key)
    at = 0
    for number, frame in enumerate(frames, first):
        end = at + len(frame) - TAG_SIZE
        try:
            aead.decrypt_into(number.to_bytes(12, "big"), frame, form._associated(number), into[at:end])
        except (InvalidTag, ValueError):
            raise FrameError("a frame does not open: changed bytes or another key") from None
        at = end
    if at != len(into):
        raise FrameError("no frame where one should be")


def _check_plain(form: SliceForm, first: int, pieces: Sequence[memoryview], checksums: memoryview) -> list[bytes]:
    for at, piece in enumerate(pieces):
        expected = checksums[at * CHECKSUM_SIZE : (at + 1) * CHECKSUM_SIZE]
        if form._checksum(first + at, piece) != expected:
            raise FrameError("a frame's checksum differs: changed bytes")
    return [bytes(piece) for piece in pieces]


def parse_header(stored: Buffer, origin: bytes) -> SliceForm:
    """Return the form that a stored slice's header names; FrameError when it is none of ours."""
    if len(stored) < HEADER.size:
        raise FrameError("a slice header is cut short")
    magic, version, function, _, frame_size, epoch, length, slice_id = HEADER.unpack(bytes(stored[: HEADER.size]))
    if magic != MAGIC or version != FORMAT or function not in _WITH_HEADER or not frame_size or not length:
        raise FrameError("not a slice header")
    return SliceForm(slice_id, origin, epoch, function, frame_size, length)


def digest(seed: int, pieces: Sequence[Buffer]) -> bytes:
    """Return the 16-byte digest of a slice's stored bytes; `seed` is the volume's 64-bit secret."""
    if len(pieces) == 1:
        return xxhash.xxh3_128_digest(pieces[0], seed)
    state = xxhash.xxh3_128(seed=seed)
    for piece in pieces:
        state.update(piece)
    return state.digest()
