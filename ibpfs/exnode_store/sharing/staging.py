"""Having depots copy what a link points to close to the receiver, before it is fetched."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ibpfs.config import write_private
from ibpfs.depot.address import Address
from ibpfs.depot.capability import BadCapability, Capability, CapabilityKind, CapabilitySet, Key
from ibpfs.depot.wire import DepotError, DepotUnreachable, Reliability
from ibpfs.errors import UsageError
from ibpfs.exnode_store.ledger_rows import pack_key, unpack_key
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel
from ibpfs.exnode_store.sharing.contents import Content, Copy
from ibpfs.exnode_store.sharing.fetching import Unavailable, best_first, told
from ibpfs.exnode_store.sharing.placing import capability

_PIECE: Final = 4 * 1024 * 1024
#: Seconds that a depot may be silent while it sends, and for each MiB more.
_PATIENCE: Final = 60
_MOST_DOCUMENT: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StagedRun:
    """A copy of run `number`, and what it takes to give it back."""

    number: int
    read: Key
    manage: Key


@dataclass(frozen=True, slots=True)
class Staged:
    """Copies of a share on one depot, until then (Unix seconds); `pin`: the depot's certificate then."""

    share: str
    depot: Address
    until: float
    runs: tuple[StagedRun, ...]
    pin: bytes | None = None

    def on(self, content: Content) -> Content:
        """The content with these copies first; as it is where they are over, or not of it."""
        if time.time() >= self.until or any(one.number >= len(content.runs) for one in self.runs):
            return content
        runs = list(content.runs)
        for one in self.runs:
            run = runs[one.number]
            runs[one.number] = replace(run, copies=(Copy(self.depot, one.read), *run.copies))
        pins = {} if self.pin is None else {self.depot: self.pin}
        return replace(content, runs=tuple(runs), pins={**content.pins, **pins})

    def manages(self) -> list[Capability]:
        return [capability(str(self.depot), one.manage, CapabilityKind.MANAGE) for one in self.runs]

    def save(self, path: Path) -> None:
        """As a secret."""
        row = {"share": self.share, "depot": str(self.depot), "until": self.until,
               "pin": None if self.pin is None else self.pin.hex(),
               "runs": [[one.number, pack_key(one.read), pack_key(one.manage)] for one in self.runs]}  # fmt: skip
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, json.dumps(row).encode())

    @classmethod
    def load(cls, path: Path) -> "Staged | None":
        """None where there is none, or none that can be read."""
        try:
            with path.open("rb") as file:
                row: Any = json.loads(file.read(_MOST_DOCUMENT))
            runs = tuple(StagedRun(int(number), *map(unpack_key, keys)) for number, *keys in row["runs"])
            pin = None if row.get("pin") is None else bytes.fromhex(row["pin"])
            return cls(str(row["share"]), Address.parse(row["depot"]), float(row["until"]), runs, pin)
        except (OSError, ValueError, KeyError, TypeError, BadCapability, UsageError):
            return None


async def stage(
    depots: Depots, content: Content, share: str, address: Address, seconds: int, advance: Advance, streams: int
) -> Staged:
    """Copy all of it to one depot, for so long or as long as it leases. All is copied, or nothing is left there.

    Raises Unavailable, DepotError, DepotUnreachable.
    """
    counter = Counter(sum(run.length for run in content.runs), advance)
    made: dict[int, tuple[CapabilitySet, float]] = {}

    async def one(number: int) -> None:
        run = content.runs[number]
        caps, granted = await depots.allocate(address, run.length, seconds, Reliability.VOLATILE)
        made[number] = caps, time.time() + granted
        target = capability(str(address), caps.write.wire_key, CapabilityKind.WRITE)
        await _fill(depots, run.copies, run.length, target)
        counter.add(run.length)

    try:
        await in_parallel(range(len(content.runs)), one, streams)
    except BaseException:
        await depots.release(_staged(share, address, made).manages())
        raise
    return replace(_staged(share, address, made), pin=depots.client(address).fingerprint)


def _staged(share: str, address: Address, made: Mapping[int, tuple[CapabilitySet, float]]) -> Staged:
    runs = [StagedRun(one, caps.read.wire_key, caps.manage.wire_key) for one, (caps, _) in sorted(made.items())]
    return Staged(share, address, min((end for _, end in made.values()), default=0.0), tuple(runs))


async def _fill(depots: Depots, copies: Sequence[Copy], length: int, target: Capability) -> None:
    """From the first depot that sends it all; where none does, by way of this machine."""
    troubles: list[str] = []
    for way in (_send, _carry):
        for copy in best_first(depots, copies, 0):
            try:
                await way(depots, copy, length, target)
            except (DepotError, DepotUnreachable) as error:
                troubles.append(told(copy, error))
                depots.note(copy.depot, error)
            else:
                return
    raise Unavailable(f"cannot be copied: {'; '.join(troubles[-3:])}")


async def _send(depots: Depots, copy: Copy, length: int, target: Capability) -> None:
    seconds = _PATIENCE + length // (1024 * 1024)
    sent = await depots.client(copy.depot).copy(copy.read, target, copy.base, length, seconds=seconds)
    if sent != length:
        raise DepotUnreachable(f"sent {sent} bytes of {length}")


async def _carry(depots: Depots, copy: Copy, length: int, target: Capability) -> None:
    """Over what half a copy may have left."""
    for at in range(0, length, _PIECE):
        data = await depots.client(copy.depot).load(copy.read, copy.base + at, min(_PIECE, length - at))
        await depots.of(target).write(target.wire_key, at, [data])
