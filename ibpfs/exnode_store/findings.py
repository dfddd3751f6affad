"""What is wrong with a volume's depots, leases and copies: one cause, one object, one action each."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import Depot, DepotSet
from ibpfs.exnode_store.description import at_risk_bytes
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.warmer import Warmer
from ibpfs.quantities import format_size

#: Seconds by which the clock may differ from what the depots' leases say; and leases among each other, if it is that.
_CLOCK, _AGREED = 3600.0, 300.0
#: Leases of each depot that are asked about.
_ASKED = 3
#: Seconds that depots have to answer.
_ANSWER = 8.0
#: A depot with less room takes no whole segment.
_ROOM = 16 * 1024 * 1024 + 8192


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is for scripts; the line for a person is 'place: cause; action'."""

    code: str
    place: str
    cause: str
    action: str


@dataclass(frozen=True, slots=True)
class DepotView:
    """What is known of a depot."""

    address: str
    is_active: bool
    is_up: bool
    is_mute: bool
    trouble: str
    refusal: str
    free_bytes: int | None
    not_renewed: str
    ended: int


def judge_depot(one: DepotView, volume: str) -> list[Finding]:
    """What is wrong with a depot; of one that does not answer nothing but that."""
    found = []
    if not one.is_up and one.is_mute:
        found.append(Finding("depot-silent", one.address, f"takes what is sent and answers nothing ({one.trouble})",
                             f"have its operator look at it and at the way there, or: ibpfs depots drain {volume}"
                             f" {one.address}"))  # fmt: skip
    elif not one.is_up:
        found.append(Finding("depot-down", one.address, _nobody(one),
                             f"start it again, or, if it is gone: ibpfs depots drain {volume} {one.address}"))
    elif one.refusal:
        found.append(Finding("depot-refuses", one.address, one.refusal, "ask its operator"))
    elif one.is_active and one.free_bytes is not None and one.free_bytes < _ROOM:
        found.append(Finding("depot-full", one.address, f"has room for {format_size(max(0, one.free_bytes))} more",
                             f"delete something, or: ibpfs depots add {volume} ADDRESS"))
    if one.not_renewed:
        found.append(Finding("renewal-refused", one.address, f"does not renew leases ({one.not_renewed})",
                             f"add another depot, then: ibpfs depots drain {volume} {one.address}"))
    elif one.ended:
        found.append(Finding("lease-ended", one.address, f"{one.ended} of its leases have ended",
                             f"once the depot answers: ibpfs warm {volume}"))
    return found


def _nobody(one: DepotView) -> str:
    """The finding names the depot already, and most of the time there is no other trouble than this."""
    cause = "nobody listens there"
    trouble = one.trouble.removeprefix(f"{one.address}: ") or "no answer"
    return cause if trouble == cause else f"{cause} ({trouble})"


def clock_off(drifts: Sequence[float]) -> float | None:
    """By how many seconds the clock goes ahead of what leases were told by (behind: negative); None when it does not.

    All leases have to agree on it: one alone may have been renewed by another machine.
    """
    if not drifts:
        return None
    off = -statistics.median(drifts)
    agree = all(abs(drift + off) < _AGREED for drift in drifts)
    return off if agree and abs(off) > _CLOCK else None


def judge_clock(off: float, place: str) -> Finding:
    amount = f"{abs(off) / 86400:.1f} days" if abs(off) >= 86400 * 0.95 else f"{abs(off) / 3600:.1f} hours"
    side = "ahead of" if off > 0 else "behind"
    return Finding("clock", place, f"this machine's clock is {amount} {side} the one that its leases were told by",
                   "set the clock (timedatectl), then: ibpfs warm --all")  # fmt: skip


class Findings:
    """Collects them, of one open volume. Needs no key."""

    def __init__(self, db: Database, ledger: Ledger, depots: DepotSet, warmer: Warmer, volume: str) -> None:
        self._db = db
        self._ledger = ledger
        self._depots = depots
        self._warmer = warmer
        self._volume = volume

    async def collect(self) -> list[Finding]:
        await self._depots.wait_for_all(_ANSWER)
        await self._warmer.renew()
        for depot in self._depots:
            await self._ask(depot)
        found = [one for depot in self._depots for one in judge_depot(self._view(depot), self._volume)]
        off = clock_off(self._warmer.renewal.drifts)
        if off is not None:
            found.append(judge_clock(off, self._volume))
        return found + self._copies() + self._code()

    async def _ask(self, depot: Depot) -> None:
        """How long it still leases what is not due, by its own account."""
        if not depot.answers:
            return
        for replica in self._ledger.leased_replicas(depot.id)[-_ASKED:]:
            try:
                left = (await depot.call(lambda key=replica.manage: depot.client.probe(key), 5.0)).seconds_left  # type: ignore[misc]
            except (DepotError, DepotUnreachable):
                continue
            if left is not None:
                self._warmer.renewal.note_drift(replica, left)

    def _view(self, depot: Depot) -> DepotView:
        now = self._ledger.now()
        ended: int = self._db.value(
            "SELECT count(*) FROM replicas WHERE depot = ? AND lease_end <= ?", (depot.id, now)
        )
        return DepotView(
            address="the volume's own depot" if depot.embedded else depot.address,
            is_active=depot.role == "active",
            is_up=depot.answers,
            is_mute=depot.is_mute,
            trouble=depot.trouble,
            refusal=depot.refusal,
            free_bytes=depot.free_bytes if depot.status else None,
            not_renewed=self._warmer.renewal.refusals.get(depot.id, ""),
            ended=ended,
        )

    def _code(self) -> list[Finding]:
        trouble = self._warmer.recoding.trouble()
        return [Finding("code-waits", self._volume, f"what is to be stored as shards stays in whole copies: {trouble}",
                        f"see to its depots, or: ibpfs depots add {self._volume} ADDRESS")] * bool(trouble)  # fmt: skip

    def _copies(self) -> list[Finding]:
        found = []
        if suspects := len(self._ledger.suspects()):
            found.append(Finding("bad-copies", self._volume, f"{suspects} copies are lost or were found to be bad",
                                 f"ibpfs repair {self._volume}"))  # fmt: skip
        risk, lacking = at_risk_bytes(self._db, self._ledger.now()), self._ledger.under_replicated_bytes()
        if risk:
            found.append(Finding("at-risk", self._volume, f"{format_size(risk)} have no copy to spare",
                                 f"see to its depots, then: ibpfs repair {self._volume}"))  # fmt: skip
        elif lacking:
            found.append(Finding("lacking-copies", self._volume, f"{format_size(lacking)} lack copies",
                                 f"see to its depots; a mount makes them up, or: ibpfs repair {self._volume}"))
        return found
