"""The directories behind one depot: each a resource with a number, which the keys of its allocations begin with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.server.store import RID, AllocationStore
from ibpfs.depot.server.target import Target
from ibpfs.depot.wire.errors import DepotError, ErrorCode, error_for
from ibpfs.depot.wire.protocol import ANY_RESOURCE
from ibpfs.errors import IbpfsError

_RID_FILE = "rid"


class ResourceConflict(IbpfsError):
    """Two directories claim the same number."""


class Resources:
    """The first store is the depot's own; there is always one."""

    def __init__(self, stores: list[AllocationStore]) -> None:
        self._stores = {store.rid: store for store in stores}
        if len(self._stores) != len(stores):
            raise ResourceConflict("two directories of the depot have the same resource number")

    def __iter__(self) -> Iterator[AllocationStore]:
        return iter(self._stores.values())

    def __len__(self) -> int:
        return len(self._stores)

    @property
    def first(self) -> AllocationStore:
        return next(iter(self._stores.values()))

    @property
    def rids(self) -> tuple[str, ...]:
        return tuple(self._stores)

    def of_key(self, key: str) -> AllocationStore:
        rid, hash_sign, _ = key.partition("#")
        store = self._stores.get(rid)
        if store is None:
            unknown = hash_sign and rid.isdigit()
            raise error_for(ErrorCode.INVALID_RID if unknown else ErrorCode.CAP_NOT_FOUND)
        return store

    def target(self, kind: CapabilityKind, key: str) -> tuple[AllocationStore, Target]:
        store = self.of_key(key)
        return store, store.target(kind, key)

    def named(self, rid: str) -> list[AllocationStore]:
        """All of them for the number that means any, most free room first."""
        if rid == ANY_RESOURCE:
            return sorted(self, key=AllocationStore.free, reverse=True) if len(self) > 1 else [self.first]
        if (store := self._stores.get(rid)) is None:
            raise error_for(ErrorCode.INVALID_RID)
        return [store]


@contextmanager
def or_no_room() -> Iterator[None]:
    """Passes over a resource without room, so that the next one can be tried."""
    try:
        yield
    except DepotError as refusal:
        if refusal.code != ErrorCode.WOULD_EXCEED_LIMIT:
            raise


def rid_of(directory: Path, proposed: str) -> str:
    """The number of a directory: kept in it, because the keys of its allocations name it for ever."""
    file = directory / _RID_FILE
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        text = file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        if proposed != RID:
            file.write_text(f"{proposed}\n", encoding="ascii")
        return proposed
    if not text.isdigit() or text == ANY_RESOURCE:
        raise ResourceConflict(f"{file} holds no resource number")
    return text
