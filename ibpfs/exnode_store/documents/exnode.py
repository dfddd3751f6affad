"""An exNode as documents have it: extents of a file and the allocations that hold them, whatever the notation.

Pure values. Times are Unix microseconds. Nothing here has been asked of a depot.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, Union

from ibpfs.depot.capability import BadCapability, Capability, CapabilityKind
from ibpfs.errors import IbpfsError

#: Metadata value: text, integer, floating-point number, or nested metadata (`meta`).
Value: TypeAlias = Union[str, int, float, tuple["Metadata", ...]]  # noqa: UP007 (the class comes below)

LARGEST: Final = 2**63 - 1
#: A document larger than this is not read: a file of 3 GB in 512 KiB blocks and three copies takes half of it.
MAX_DOCUMENT: Final = 64 * 1024 * 1024
MAX_MAPPINGS: Final = 200_000
#: How deep functions, and metadata, may be nested.
MAX_NESTING: Final = 16


class BadDocument(IbpfsError):
    """A text is not an exNode that can be used. The message never repeats a capability or a key."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A named value; `type` is string, integer, double, meta, or one that is only kept."""

    name: str
    type: str
    value: Value


@dataclass(frozen=True, slots=True)
class Function:
    """End-to-end conditioning; the outermost was applied last. Arguments may hold a key."""

    name: str
    arguments: tuple[Metadata, ...] = field(default=(), repr=False)
    metadata: tuple[Metadata, ...] = field(default=(), repr=False)
    inner: "Function | None" = None

    def argument(self, name: str) -> Value | None:
        return next((argument.value for argument in self.arguments if argument.name == name), None)

    @property
    def blocksize(self) -> int | None:
        """Length of an output block; None = not given."""
        value = self.argument("blocksize")
        return value if isinstance(value, int) else None

    @property
    def key(self) -> str | None:
        value = self.argument("KEY")
        return value if isinstance(value, str) else None

    def chain(self) -> "list[Function]":
        """This function and the inner ones, outermost first, without those that do nothing."""
        found: list[Function] = []
        one: Function | None = self
        while one is not None:
            if one.name != "identity":
                found.append(one)
            one = one.inner
        return found


@dataclass(frozen=True, slots=True)
class Mapping:
    """File bytes [offset, offset + length) are stored in an allocation at [alloc_offset, alloc_offset + alloc_length).

    `clear_block`: file bytes per block of a function, 0 = not conditioned. `doubtful`: the notation leaves open
    whether alloc_offset means the allocation or the file. `metadata` and `fields` are what is only kept.
    """

    offset: int
    length: int
    alloc_offset: int = 0
    alloc_length: int = 0
    clear_block: int = 0
    function: Function | None = None
    read: Capability | None = None
    write: Capability | None = None
    manage: Capability | None = None
    start: int | None = None
    end: int | None = None
    location: str = ""
    doubtful: bool = False
    metadata: tuple[Metadata, ...] = field(default=(), repr=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stop(self) -> int:
        return self.offset + self.length

    @property
    def conditioned(self) -> bool:
        return self.function is not None and bool(self.function.chain())

    @property
    def capability(self) -> Capability | None:
        """Any one: all name the same depot."""
        return self.read or self.manage or self.write

    def read_only(self) -> "Mapping":
        return replace(self, write=None, manage=None)


@dataclass(frozen=True, slots=True)
class ExNode:
    """`foreign`: extents on other storage than IBP, or only linked to; kept, never used."""

    name: str
    size: int
    mode: str = "file"
    created: int | None = None
    modified: int | None = None
    mappings: tuple[Mapping, ...] = ()
    metadata: tuple[Metadata, ...] = field(default=(), repr=False)
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    foreign: tuple[Any, ...] = field(default=(), repr=False)

    def read_only(self) -> "ExNode":
        """Without write and manage capabilities: to give away. Foreign extents go, too: they may carry some."""
        return replace(self, mappings=tuple(mapping.read_only() for mapping in self.mappings), foreign=())


def check(exnode: ExNode) -> ExNode:
    """Return `exnode` if all its numbers make sense; BadDocument else."""
    if len(exnode.mappings) > MAX_MAPPINGS:
        raise BadDocument(f"more than {MAX_MAPPINGS} mappings")
    for number, mapping in enumerate(exnode.mappings):
        trouble = next(_troubles(mapping), None)
        if trouble:
            raise BadDocument(f"mapping {number}: {trouble}")
    if not 0 <= exnode.size <= LARGEST:
        raise BadDocument(f"a size of {exnode.size} bytes makes no sense")
    return exnode


def _troubles(mapping: Mapping) -> Iterator[str]:
    if min(mapping.offset, mapping.length, mapping.alloc_offset, mapping.alloc_length, mapping.clear_block) < 0:
        yield "an offset or a length is negative"
    if mapping.stop > LARGEST or mapping.alloc_offset + mapping.alloc_length > LARGEST:
        yield "an offset or a length is too large"
    if not mapping.conditioned and mapping.alloc_length < mapping.length:
        yield f"{mapping.alloc_length} stored bytes cannot give {mapping.length} file bytes"
    if mapping.function is not None:
        if len(mapping.function.chain()) > MAX_NESTING:
            yield f"more than {MAX_NESTING} nested functions"
        for function in mapping.function.chain():
            if function.blocksize is not None and function.blocksize <= 0:
                yield f"function {function.name[:40]!a}: a block size of {function.blocksize}"


def capability_of(text: Any, kind: CapabilityKind, where: str) -> Capability | None:
    """Return the capability that a document gives as its `kind`; None for nothing."""
    text = text.strip() if isinstance(text, str) else text
    if not text:
        return None
    name = kind.name.lower()
    try:
        capability = Capability.parse(text) if isinstance(text, str) else None
    except BadCapability as error:
        raise BadDocument(f"{where}: {name} capability: {error}") from None
    if capability is None or capability.kind != kind:
        raise BadDocument(f"{where}: its {name} capability is one of another kind")
    return capability


def length_of(mappings: tuple[Mapping, ...]) -> int:
    """The length of a file whose document does not say it."""
    return max((mapping.stop for mapping in mappings), default=0)
