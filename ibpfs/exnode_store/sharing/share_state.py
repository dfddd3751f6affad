"""What a volume's owner keeps of a share: with it the share is extended and revoked. Secret; sealed in the store."""

import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.ledger_rows import pack_key, unpack_key
from ibpfs.exnode_store.sharing.contents import Content
from ibpfs.exnode_store.sharing.links import Link, decode, encode
from ibpfs.exnode_store.sharing.notation import from_json, to_json
from ibpfs.exnode_store.sharing.record_log import public_bytes, share_id
from ibpfs.exnode_store.sharing.share_keys import Stretching

#: STALE: a copy of the record that missed an entry.
RECORD, STALE, COPY = "record", "stale", "copy"
#: Not yet complete, in force, to be released as soon as its depots answer.
MAKING, ACTIVE, ENDING = "making", "active", "ending"
#: Of the JSON, zipped; a row of the store.
_LARGEST: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Lease:
    """What is to be known to renew it: of a window on a replica of `segment`, whose manage key is `parent`, or of an
    allocation of a share's own, which `length` is the size of."""

    depot: str
    manage: Key
    length: int
    segment: int | None = None
    parent: Key | None = None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Owned:
    """An allocation made for the share: a copy of its record, or of one of its runs. `lease_end` None: permanent."""

    kind: str
    depot: str
    read: Key
    write: Key
    manage: Key
    size: int
    lease_end: float | None

    @property
    def lease(self) -> Lease:
        return Lease(self.depot, self.manage, self.size)

    @property
    def is_stray(self) -> bool:
        """Whether nobody knows how to read or write it: it was noted, and came no further."""
        return self.read == self.manage


@dataclass(frozen=True, slots=True)
class Alias:
    """A window on a replica of a segment; `parent` is the replica's manage key."""

    segment: int
    depot: str
    read: Key
    manage: Key
    parent: Key
    offset: int
    length: int
    lease_end: float | None

    @property
    def lease(self) -> Lease:
        return Lease(self.depot, self.manage, self.length, self.segment, self.parent, self.offset)


@dataclass(frozen=True, slots=True)
class Term:
    """Until when what is made for a link is leased, and where it is noted, and synced, before it is leased so long."""

    expires: int
    note: Callable[[Lease, float], None]
    sync: Callable[[], Awaitable[None]]


@dataclass
class Share:
    """`stage`: see MAKING. `key`: the record's. `number`: of its last entry. `log_length`: of all entries, at most.
    `behind`: the record may not say what the share is now. `pins`: what it says of depots' certificates. `link`: None
    while it is made. `depot_bytes`: of the copied ones those that depots copied by themselves. `over_since`: when it
    was first seen to have expired while depots that may know more did not answer; 0: never."""

    path: str
    signer: Ed25519PrivateKey = field(repr=False)
    key: bytes = field(repr=False)
    content: Content
    stage: str = MAKING
    number: int = 0
    log_length: int = 0
    behind: bool = False
    link: Link | None = None
    gateway: str | None = None
    stretching: Stretching | None = None
    recipients: int = 0
    copied_bytes: int = 0
    depot_bytes: int = 0
    aliases: list[Alias] = field(default_factory=list)
    owned: list[Owned] = field(default_factory=list)
    pins: dict[Address, bytes] = field(default_factory=dict)
    over_since: float = 0.0

    @property
    def share(self) -> bytes:
        return share_id(public_bytes(self.signer))

    @property
    def expires(self) -> int:
        return self.content.expires

    @property
    def is_local(self) -> bool:
        """Whether nobody on another machine can have all of it."""
        records = [Address.parse(one.depot) for one in self.owned if one.kind == RECORD]
        places = [records, *([copy.depot for copy in run.copies] for run in self.content.runs)]
        return any(all(one.is_local for one in found) for found in places)

    @property
    def dropped(self) -> list[Alias]:
        """Windows that the content does not name any more, and that may be open yet."""
        named = {(str(copy.depot), copy.read) for run in self.content.runs for copy in run.copies}
        return [one for one in self.aliases if (one.depot, one.read) not in named]

    def to_bytes(self) -> bytes:
        row = {
            "path": self.path, "signer": encode(self.signer.private_bytes_raw()), "key": encode(self.key),
            "content": to_json(self.content).decode("ascii"), "stage": self.stage, "number": self.number,
            "log_length": self.log_length, "behind": self.behind,
            "link": None if self.link is None else self.link.render(), "gateway": self.gateway,
            "stretching": None if self.stretching is None else self.stretching.as_row(),
            "recipients": self.recipients, "copied_bytes": self.copied_bytes,
            "depot_bytes": self.depot_bytes,
            "aliases": [_alias_row(one) for one in self.aliases], "owned": [_owned_row(one) for one in self.owned],
            "pins": {str(one): pin.hex() for one, pin in self.pins.items()}, "over_since": self.over_since,
        }  # fmt: skip
        return zlib.compress(json.dumps(row).encode("ascii"))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Share":
        """Raises ValueError: it is our own, and sealed."""
        row = json.loads(zlib.decompressobj().decompress(data, _LARGEST))
        return cls(
            path=row["path"], signer=Ed25519PrivateKey.from_private_bytes(decode(row["signer"])),
            key=decode(row["key"]), content=from_json(row["content"].encode("ascii")), stage=row["stage"],
            number=row["number"], log_length=row["log_length"], behind=row.get("behind", False),
            link=None if row["link"] is None else Link.parse(row["link"]), gateway=row["gateway"],
            stretching=None if row["stretching"] is None else Stretching.from_row(row["stretching"]),
            recipients=row["recipients"], copied_bytes=row["copied_bytes"],
            depot_bytes=row.get("depot_bytes", 0),  # not in those of the first release
            aliases=[_alias(one) for one in row["aliases"]], owned=[_owned(one) for one in row["owned"]],
            pins={Address.parse(one): bytes.fromhex(pin) for one, pin in row.get("pins", {}).items()},
            over_since=row.get("over_since", 0.0),
        )  # fmt: skip


def _alias_row(one: Alias) -> dict[str, Any]:
    return {
        "segment": one.segment, "depot": one.depot, "read": pack_key(one.read), "manage": pack_key(one.manage),
        "parent": pack_key(one.parent), "offset": one.offset, "length": one.length, "lease_end": one.lease_end,
    }  # fmt: skip


def _alias(row: Mapping[str, Any]) -> Alias:
    read, manage, parent = (unpack_key(row[kind]) for kind in ("read", "manage", "parent"))
    keys = read, manage, parent
    return Alias(row["segment"], row["depot"], *keys, row["offset"], row["length"], row["lease_end"])


def _owned_row(one: Owned) -> dict[str, Any]:
    return {
        "kind": one.kind, "depot": one.depot, "read": pack_key(one.read), "write": pack_key(one.write),
        "manage": pack_key(one.manage), "size": one.size, "lease_end": one.lease_end,
    }  # fmt: skip


def _owned(row: Mapping[str, Any]) -> Owned:
    read, write, manage = (unpack_key(row[kind]) for kind in ("read", "write", "manage"))
    keys = read, write, manage
    return Owned(row["kind"], row["depot"], *keys, row["size"], row["lease_end"])
