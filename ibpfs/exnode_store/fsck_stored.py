"""Whether stored bytes are what a slice's row says: digest, header, frames. Pure: knows no depot and no database."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.sealing import (
    FUNCTIONS,
    HEADER,
    PLAIN_XXH3,
    Buffer,
    FrameError,
    SliceForm,
    digest,
    parse_header,
    unseal,
)

#: How it went with a replica: its bytes came, the depot does not know it, the depot did not answer.
READ, GONE, SILENT = "read", "gone", "silent"
#: Stored bytes that are loaded at once, unless a slice is longer.
_GROUP = 4 * 1024 * 1024
_FRAMES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """A slice and where its row says that it lies in its segment."""

    row: int
    offset: int
    digest: bytes
    form: SliceForm

    @classmethod
    def of(cls, row: Sequence[Any]) -> "Stored":
        """id, segment_offset, digest, then the form's columns."""
        return cls(row[0], row[1], row[2], SliceForm(*row[3:]))

    @property
    def stop(self) -> int:
        return self.offset + self.form.stored_length


@dataclass
class Verdict:
    """What is wrong in one replica, by slice row: bytes and why; rows whose digest is wrong, with the right one."""

    state: str = READ
    trouble: str = ""
    bad: dict[int, str] = field(default_factory=dict)
    stale: dict[int, bytes] = field(default_factory=dict)


def _none(_: bytes) -> None:
    """No slice came with a key of its own."""


class Judge:
    """`keys` None: frames of sealed slices cannot be opened, the digest alone decides. `wrapped`: of a slice that
    another volume sealed, by its id, the epoch and the key as the store has it."""

    def __init__(
        self, seed: int, keys: VolumeKeys | None, wrapped: Callable[[bytes], tuple[int, bytes] | None] = _none
    ) -> None:
        self._seed = seed
        self._keys = keys
        self._wrapped = wrapped

    def judge(self, stored: Stored, data: Buffer, verdict: Verdict) -> None:
        """Note in the verdict what is wrong with `data`, the stored bytes of the slice."""
        if not stored.digest:  # imported: only who reads it with its key can say
            return
        found = digest(self._seed, [data])
        opens = self._opens(stored.form, data)
        if found == stored.digest:
            if opens is False:
                verdict.bad[stored.row] = "its frames do not open"
        elif opens:
            verdict.stale[stored.row] = found
        else:
            verdict.bad[stored.row] = "digest differs"

    def is_sound(self, stored: Stored, data: Buffer) -> bool:
        return digest(self._seed, [data]) == stored.digest and self._opens(stored.form, data) is not False

    def _opens(self, form: SliceForm, data: Buffer) -> bool | None:
        """None when that cannot be tried."""
        if form.function not in FUNCTIONS:
            return None
        key = b""
        if form.function != PLAIN_XXH3:
            if self._keys is None:
                return None
            found = self._key(form, self._keys)
            if found is None:
                return False
            key = found
        view = memoryview(data)
        if len(view) != form.stored_length or bytes(view[: HEADER.size]) != form.header():
            return False
        try:
            for first in range(0, form.frames, _FRAMES_AT_ONCE):
                _open(form, key, view, first, min(first + _FRAMES_AT_ONCE, form.frames))
        except FrameError:
            return False
        return True

    def _key(self, form: SliceForm, keys: VolumeKeys) -> bytes | None:
        foreign = self._wrapped(form.slice_id)
        if foreign is not None:
            return keys.unwrap_import(foreign[0], form.slice_id, foreign[1])
        return keys.slice_key(form.epoch, form.slice_id) if form.epoch in keys.epochs else None


def _open(form: SliceForm, key: bytes, stored: memoryview, first: int, behind: int) -> None:
    start, stop = form.stored_span(first, behind)
    checksums = memoryview(b"")
    if form.function == PLAIN_XXH3:
        at, end = form.checksum_span(first, behind)
        checksums = stored[at:end]
    unseal(form, key, first, stored[start:stop], checksums)


def groups(slices: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Neighbours that are loaded together."""
    group: list[Stored] = []
    for one in slices:
        if group and (one.offset != group[-1].stop or one.stop - group[0].offset > _GROUP):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def find_stored(stored: Stored, judge: Judge, segment: bytes | bytearray) -> Stored | None:
    """The slice as the bytes of a segment have it: where it lies, and its form by its header. None: not sound there."""
    behind = HEADER.size - len(stored.form.slice_id)  # the id ends a header
    at = segment.find(stored.form.slice_id)
    while at >= 0:
        begin = at - behind
        found = _read(stored, memoryview(segment)[begin:], begin) if begin >= 0 else None
        if found is not None and judge.is_sound(found, memoryview(segment)[begin : found.stop]):
            return found
        at = segment.find(stored.form.slice_id, at + 1)
    return None


def _read(stored: Stored, data: memoryview, offset: int) -> Stored | None:
    try:
        form = parse_header(data, stored.form.origin)
    except FrameError:
        return None
    return replace(stored, offset=offset, form=form)
