"""What the sealed part of a share's record says: files, the slices they consist of, their keys, where they lie. Pure.

A stranger may have written it: every number, name and index is checked before anybody looks at the rest.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.sealing import MAX_SLICE, SliceForm

#: Numbers that every JSON reader has exactly.
MAX_NUMBER: Final = (1 << 53) - 1
#: A time in seconds that calendars have.
LAST_TIME: Final = 1 << 40
MAX_ENTRIES: Final = 100_000
MAX_DEPTH: Final = 64
MAX_NAME: Final = 255
MAX_PATH: Final = 4096
MAX_NOTE: Final = 4096
MAX_SLICES: Final = 500_000
MAX_PARTS: Final = 1_000_000
MAX_COPIES: Final = 16
MAX_FRAME: Final = MAX_SLICE
FILE, DIRECTORY, LINK = "file", "directory", "link"


class BadContent(ValueError):
    """A record's sealed part makes no sense, or asks for more than anybody may."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An allocation, by its read capability; the run's first byte is its byte `base`."""

    depot: Address
    read: Key
    base: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Stored slices back to back, the same bytes in each of its copies."""

    length: int
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class SharedSlice:
    """A stored slice, sealed with AES-256-GCM; its header is at byte `offset` of run number `run`."""

    form: SliceForm
    run: int
    offset: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SharedPart:
    """File bytes [start, stop) are those of slice number `slice` from its byte `offset` on."""

    start: int
    stop: int
    slice: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or symbolic link. `path`: names below the shared one, () for itself; bytes in no part are
    zeros; `target`: of a link alone, see check_target."""

    path: tuple[str, ...]
    kind: str
    size: int
    mtime_ns: int
    mode: int
    sha256: bytes | None
    parts: tuple[SharedPart, ...] = ()
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Sender:
    """Who shared it: a volume's Ed25519 public key, and its signature over the share's key."""

    key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """All of it. `entries`: parents before what is in them; one, with path (), when a file is shared.

    `pins`: certificates by which depots are known; of the record's public part.
    """

    name: str
    note: str
    created: int
    expires: int
    sender: Sender
    runs: tuple[Run, ...]
    slices: tuple[SharedSlice, ...]
    entries: tuple[Entry, ...]
    pins: Mapping[Address, bytes] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return self.entries[0].kind == DIRECTORY

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)

    @property
    def files(self) -> int:
        return sum(entry.kind == FILE for entry in self.entries)

    @property
    def links(self) -> int:
        return sum(entry.kind == LINK for entry in self.entries)

    def check(self) -> None:
        """Raises BadContent."""
        check_name(self.name)
        if len(self.note.encode("utf-8", "surrogatepass")) > MAX_NOTE:
            raise BadContent("its note is too long")
        _need(0 <= self.created < LAST_TIME and 0 <= self.expires < LAST_TIME, "has a time out of range")
        _need(0 < len(self.entries) <= MAX_ENTRIES, "has no files, or more than 100,000")
        _need(len(self.slices) <= MAX_SLICES, "has too many slices")
        for run in self.runs:
            _need(0 < run.length <= MAX_NUMBER and 0 < len(run.copies) <= MAX_COPIES, "has a run without copies")
            _need(all(0 <= one.base <= MAX_NUMBER for one in run.copies), "has a copy that begins nowhere")
        for slice_ in self.slices:
            self._check_slice(slice_)
        self._check_entries()

    def _check_slice(self, one: SharedSlice) -> None:
        form = one.form
        _need(0 < form.length <= MAX_SLICE and 0 < form.frame_size <= MAX_FRAME, "has a slice of no length")
        _need(form.frames <= 1 << 16, "has a slice of too many frames")
        _need(0 <= one.run < len(self.runs), "has a slice that lies nowhere")
        end = one.offset + form.stored_length
        _need(one.offset >= 0 and end <= self.runs[one.run].length, "has a slice that is longer than its run")
        _need(len(one.key) == 32 and len(form.slice_id) == 16 and len(form.origin) == 16, "has a key of no use")
        _need(0 <= form.epoch < 1 << 32, "has a slice of no epoch")

    def _check_entries(self) -> None:
        directories: set[tuple[str, ...]] = set()
        seen: set[tuple[str, ...]] = set()
        parts = 0
        for number, entry in enumerate(self.entries):
            _need((number == 0) == (entry.path == ()), "does not begin with what is shared")
            _need(len(entry.path) <= MAX_DEPTH, "has directories too deep")
            for name in entry.path:
                check_name(name)
            _need(sum(len(_name_bytes(name)) + 1 for name in entry.path) <= MAX_PATH, "has a path too long")
            _need(entry.path not in seen, "has a name twice")
            _need(not entry.path or entry.path[:-1] in directories, "has a name in no directory")
            seen.add(entry.path)
            if entry.kind == DIRECTORY:
                directories.add(entry.path)
            parts += len(entry.parts)
            _need(parts <= MAX_PARTS, "has too many parts")
            self._check_entry(entry)
        _need(self.size <= MAX_NUMBER, "is too large")

    def _check_entry(self, entry: Entry) -> None:
        _need(entry.kind in (FILE, DIRECTORY, LINK), "has an entry of no kind")
        _need(entry.kind == FILE or (entry.size == 0 and not entry.parts), "has a directory or link with bytes")
        _need((entry.target is not None) == (entry.kind == LINK), "has a symbolic link to nothing")
        if entry.target is not None:
            check_target(entry.path, entry.target)
        _need(0 <= entry.size <= MAX_NUMBER and 0 <= entry.mode <= 0o777, "has a file of no size or mode")
        _need(abs(entry.mtime_ns) < 1 << 63, "has a time out of range")
        _need(entry.sha256 is None or len(entry.sha256) == 32, "has a hash of another length")
        at = 0
        for part in entry.parts:
            _need(at <= part.start < part.stop <= entry.size, "has parts that do not follow each other")
            _need(0 <= part.slice < len(self.slices), "has a part of no slice")
            length = self.slices[part.slice].form.length
            _need(part.offset >= 0 and part.offset + part.stop - part.start <= length, "has a part outside its slice")
            at = part.stop


def check_name(name: str) -> None:
    """Whether a stranger's name is one component of a path, and harmless on a terminal. Raises BadContent."""
    _need(name not in ("", ".", "..") and "/" not in name, "has a name that is none")
    _need(not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name),
          "has a name with control characters")  # fmt: skip
    _need(len(_name_bytes(name)) <= MAX_NAME, "has a name that is too long")


def check_target(path: tuple[str, ...], target: str) -> None:
    """Whether a symbolic link at `path` leads to what is shared, whatever other links it passes. Raises BadContent.

    It goes up first, not above the shared directory, then along names. An `..` behind a name would not do: the name may
    be another link's, and `..` then leads up from wherever that points.
    """
    words = target.split("/")
    names = list(dropwhile("..".__eq__, words))
    outside = "has a symbolic link that leads out of what is shared"
    _need(len(words) - len(names) < len(path) and ".." not in names and not target.startswith("/"), outside)
    _need(len(_name_bytes(target)) < MAX_PATH, "has a symbolic link to a path too long")
    for name in () if target == "." else names:
        check_name(name)


def _name_bytes(name: str) -> bytes:
    """As it stands in a directory; what was no UTF-8 comes as lone surrogates, as Python reads it."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadContent("has a name that no directory can hold") from None


def _need(fine: bool, what: str) -> None:
    if not fine:
        raise BadContent(what)


def depots_of(runs: Sequence[Run]) -> Iterator[Address]:
    """Each depot that holds some of it, once, in order."""
    yield from dict.fromkeys(one.depot for run in runs for one in run.copies)
