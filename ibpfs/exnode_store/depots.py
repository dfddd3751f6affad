"""The volume's depots as its own record has them: address, client, state by recent behaviour, last known free room."""

import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient, DepotStatus
from ibpfs.depot.wire import DepotError, DepotRefused, DepotUnreachable, ErrorCode
from ibpfs.errors import UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.placement import FAILED, OK, STUTTERING, Candidate
from ibpfs.exnode_store.record import Records

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: A depot that did not answer for this long is failed: what only it holds cannot be had now, and is refused at once.
FAILED_AFTER = 10.0
#: Seconds between looks at a depot that answers, and at one that does not.
_LOOK_EVERY, _RETRY_EVERY = 10.0, 0.5
#: Seconds of a round trip from which on a depot is far.
_FAR = 0.01
#: No single command waits longer than this for a silent depot.
COMMAND_LIMIT = 20.0
_PRESENT = "SELECT id, address, embedded, role, labels, fingerprint FROM depots WHERE role != 'removed'"


class Depot:
    """One depot of the volume."""

    def __init__(self, number: int, address: str, client: DepotClient, *, embedded: bool, role: str,
                 labels: Mapping[str, str]) -> None:  # fmt: skip
        self.id = number
        self.address = address
        self.client = client
        self.embedded = embedded
        self.role = role
        self.labels = labels
        self.status: DepotStatus | None = None
        self.free_bytes = 0
        self._taken = 0  # by allocations of ours, in all, those that it is being asked for too
        self._asked = 0
        self.latency = 0.0
        self._round_trip = 0.0  # the quickest answer since it began to answer
        self.records = Records()
        self.peers: Callable[[], Iterable[Depot]] = tuple
        self.busy = 0  # open segments on it
        self.trouble = ""
        self.refusal = ""  # why it answers, and yet can take nothing
        self.keeps_word = False  # was seen to lease for as long as it says
        self.renews = True  # False: it has refused to, and others are chosen first
        self.is_pinned = False  # spoken to through TLS, and known by its fingerprint
        self.is_open = False  # what is said to it, capabilities too, can be read on the way
        self._down_since: float | None = None
        self._refused = False
        self._is_told = False  # that it does not answer
        self.turned = trio.Event()  # set, and replaced, when it begins or ceases to answer

    @property
    def state(self) -> str:
        """ok, stuttering (it failed just now, or is slow) or failed (nobody listens, or for FAILED_AFTER seconds).
        The embedded one is started again at once when nobody listens, and may be waited for."""
        if self._down_since is None:
            return STUTTERING if self.is_slow else OK
        return FAILED if self.is_away or (self._refused and not self.embedded) else STUTTERING

    @property
    def answers(self) -> bool:
        """Slow or not."""
        return self._down_since is None

    @property
    def is_slow(self) -> bool:
        """By its recent record, beside its own and its peers'."""
        return self.records.are_slow(one.records for one in self.peers() if one is not self)

    @property
    def is_away(self) -> bool:
        """For longer than it takes to start it again."""
        return self._down_since is not None and trio.current_time() - self._down_since > FAILED_AFTER

    @property
    def is_mute(self) -> bool:
        """Whether it (or the way to it) takes what is sent and answers nothing; not that nobody listens there."""
        return self._down_since is not None and not self._refused

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to wait for: it has told its status, has refused to, or is away."""
        return self.state == FAILED or bool(self.refusal) or (self.answers and self.status is not None)

    def answered(self, seconds: float) -> None:
        if self._is_told:
            _log.info("depot %s answers again", self.address)
        if self._down_since is not None:
            self._turn()
        self._down_since, self._is_told = None, False
        self._refused = False
        self.trouble = ""
        self.latency = 0.8 * self.latency + 0.2 * seconds
        if seconds:
            self._round_trip = min(self._round_trip or seconds, seconds)

    def silent(self, trouble: str, *, refused: bool = False) -> None:
        self.trouble = trouble
        self._refused = refused
        self.late()
        if not self._is_told:
            self._is_told = True
            # The embedded one's keeper starts it again, and warns when it was killed or does not come up.
            level = logging.INFO if self.embedded else logging.WARNING
            _log.log(level, "depot %s does not answer: %s", self.address, trouble.removeprefix(f"{self.address}: "))

    def late(self) -> None:
        """Others had answered long ago: it gets nothing to do before it has shown that it answers."""
        if self._down_since is None:
            self._down_since = trio.current_time()
            self._round_trip = 0.0
            self._turn()

    @property
    def is_far(self) -> bool:
        """Whether a round trip to it is what a command waits for."""
        return self._round_trip >= _FAR

    def _turn(self) -> None:
        self.turned.set()
        self.turned = trio.Event()

    async def load(self, command: Callable[[], Awaitable[T]], length: int) -> T:
        """A call that brings so many bytes, and goes on record."""
        with self.records.loads.timing(length):
            return await self.call(command)

    async def store(self, command: Callable[[], Awaitable[T]], length: int) -> T:
        """A call that takes so many bytes there, and goes on record."""
        with self.records.stores.timing(length):
            return await self.call(command)

    async def call(self, command: Callable[[], Awaitable[T]], limit: float = COMMAND_LIMIT) -> T:
        """Run one command of the client, bounded; what it says of the depot's health is noted.

        Raises DepotError or DepotUnreachable.
        """
        began = trio.current_time()
        scope = trio.CancelScope(deadline=began + limit)
        try:
            with scope:
                result = await command()
        except DepotUnreachable as error:
            self.silent(str(error), refused=isinstance(error, DepotRefused))
            raise
        except DepotError:
            self.answered(0.0)
            raise
        if scope.cancelled_caught:
            self.silent(f"no answer for {limit:.0f} s")
            raise DepotUnreachable(f"{self.address}: no answer for {limit:.0f} s")
        self.answered(trio.current_time() - began)
        return result

    async def look(self) -> None:
        """Ask for its status."""
        first, taken = self.status is None, self._taken - self._asked
        try:
            self.status = await self.call(self.client.status, 5.0)
        except DepotError as error:
            self._refused_to_tell(error)
            raise
        self.refusal = ""
        # What was taken meanwhile may not be in it; if it is, the next look says so.
        self.free_bytes = self.status.free_bytes - (self._taken - taken)
        if first:
            self._turn()

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """While it is asked for an allocation of this size, nobody else counts on that room."""
        self.free_bytes -= size
        self._taken += size
        self._asked += size
        try:
            yield
        except BaseException:
            self.free_bytes += size
            self._taken -= size
            raise
        finally:
            self._asked -= size

    def _refused_to_tell(self, error: DepotError) -> None:
        wanted = ", it wants another password than 'ibp' for it" if error.code == ErrorCode.WRONG_PASSWD else ""
        told, self.refusal = self.refusal, f"{self.address} refuses to tell its status{wanted}: {error}"
        if told != self.refusal:
            _log.warning("depot %s", self.refusal)

    def candidate(self, labels: Sequence[str] = ()) -> Candidate:
        state = FAILED if self.role != "active" else self.state
        if state == OK and not self.renews:
            state = STUTTERING
        return Candidate(self.id, state, self.free_bytes, self.busy, self.domain(labels))

    def domain(self, labels: Sequence[str]) -> frozenset[str]:
        """What it shares with other depots, by the labels that copies are to differ in."""
        return frozenset(f"{label}={self.labels[label]}" for label in labels if label in self.labels)


class DepotSet:
    """All depots of the volume, watched by a task each."""

    def __init__(self, db: Database, embedded_socket: str) -> None:
        self._db = db
        self._embedded_socket = embedded_socket
        self._depots: dict[int, Depot] = {}
        self._removed: list[Depot] = []
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def watched(self) -> AsyncIterator["DepotSet"]:
        """The depots with their watchers running. Needs no depot to answer."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for row in self._db.rows(_PRESENT):
                    self._start(*row)
                self._warn_of_plain(self._depots.values())
                yield self
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                for depot in (*self, *self._removed):
                    await depot.client.aclose()

    def _start(
        self, number: int, address: str, embedded: int, role: str, labels: str, fingerprint: bytes | None
    ) -> None:
        place = f"unix:{self._embedded_socket}" if embedded else address
        client = DepotClient(Address.parse(place), fingerprint=None if embedded else fingerprint)
        depot = Depot(number, address, client, embedded=embedded == 1, role=role, labels=json.loads(labels))
        depot.is_pinned = fingerprint is not None and not embedded
        depot.is_open = not (embedded or fingerprint or client.address.secure or client.address.is_local)
        depot.peers = self._active
        self._depots[number] = depot
        assert self._nursery is not None
        self._nursery.start_soon(self._watch, depot)

    def _warn_of_plain(self, depots: Iterable[Depot]) -> None:
        """Once per mount."""
        if named := ", ".join(depot.address for depot in depots if depot.is_open):
            _log.warning("without TLS, whoever listens on the way can read and delete what is kept at: %s", named)

    async def _watch(self, depot: Depot) -> None:
        while depot.role != "removed":
            try:
                await depot.look()
            except (DepotUnreachable, DepotError):
                await trio.sleep(_RETRY_EVERY)
                continue
            with trio.move_on_after(_LOOK_EVERY):
                await depot.turned.wait()

    def _active(self) -> list[Depot]:
        return [depot for depot in self if depot.role == "active"]

    def __iter__(self) -> Iterator[Depot]:
        return iter(list(self._depots.values()))  # it may become more while a caller waits between two

    def find(self, number: int) -> Depot | None:
        """The depot; None when it was removed."""
        return self._depots.get(number)

    def get(self, number: int) -> Depot:
        """The depot; DepotUnreachable when it was removed."""
        try:
            return self._depots[number]
        except KeyError:
            raise DepotUnreachable(f"depot {number} is no longer one of this volume's") from None

    def add(self, address: str, labels: Mapping[str, str], fingerprint: bytes | None = None) -> Depot:
        """Take a depot into the volume, or back, pinned if a fingerprint is given. UsageError when it is in use."""
        text = str(Address.parse(address))
        known = self.at(text)
        if known is not None:
            return self._take_back(known, fingerprint, labels)
        with self._db.transaction() as db:
            db.execute(  # one that was removed comes back
                "INSERT INTO depots (address, embedded, fingerprint, labels, role, seq)"
                " VALUES (?, 0, ?, ?, 'active', ?) ON CONFLICT (address) DO UPDATE SET embedded = 0,"
                " fingerprint = excluded.fingerprint, labels = excluded.labels, role = 'active', seq = excluded.seq",
                (text, fingerprint, json.dumps(dict(labels)), db.seq),
            )
        row: int = self._db.value("SELECT id FROM depots WHERE address = ?", (text,))
        self._start(row, text, 0, "active", json.dumps(dict(labels)), fingerprint)
        self._warn_of_plain([self._depots[row]])
        return self._depots[row]

    def _take_back(self, depot: Depot, fingerprint: bytes | None, labels: Mapping[str, str]) -> Depot:
        if depot.role == "active":
            raise UsageError(f"{depot.address} is a depot of this volume already")
        self._set_role(depot, "active")
        if labels:
            self.label(depot, labels)
        if fingerprint is not None and not depot.embedded:
            self.pin(depot.id, fingerprint)
        return depot

    def at(self, address: str) -> Depot | None:
        """The depot at an address, however it is spoken to, or of a number; an embedded one may have no port yet."""
        if address.isdecimal():
            return self.find(int(address)) if len(address) < 19 else None  # Python refuses to read thousands
        place = str(Address.parse(address)).partition(":")[2]
        return next((depot for depot in self if depot.address.partition(":")[2] == place), None)

    def was_removed(self, address: str) -> bool:
        column, value = ("id", address) if address.isdecimal() else ("address", str(Address.parse(address)))
        found = self._db.value(f"SELECT role FROM depots WHERE {column} = ?", (value,))
        return bool(found == "removed")

    def drain(self, depot: Depot) -> None:
        """It takes no new bytes from now on."""
        self._set_role(depot, "draining")

    def remove(self, depot: Depot) -> None:
        """It is none of the volume's any more; it must hold nothing."""
        self._set_role(depot, "removed")
        self._removed.append(self._depots.pop(depot.id))
        depot.client.drop_connections()

    def _set_role(self, depot: Depot, role: str) -> None:
        with self._db.transaction() as db:
            db.execute("UPDATE depots SET role = ?, seq = ? WHERE id = ?", (role, db.seq, depot.id))
        depot.role = role

    def label(self, depot: Depot, labels: Mapping[str, str]) -> None:
        """These are its labels from now on; copies that stand stay where they are."""
        with self._db.transaction() as db:
            text = json.dumps(dict(labels))
            db.execute("UPDATE depots SET labels = ?, seq = ? WHERE id = ?", (text, db.seq, depot.id))
        depot.labels = dict(labels)

    def pin(self, number: int, fingerprint: bytes) -> None:
        """Trust this certificate of a depot, and no other, from now on."""
        with self._db.transaction() as db:
            db.execute("UPDATE depots SET fingerprint = ?, seq = ? WHERE id = ?", (fingerprint, db.seq, number))
        depot = self._depots[number]
        depot.is_pinned, depot.is_open = True, False
        depot.client.pin(fingerprint)

    def foreign(self, address: Address, fingerprint: bytes | None = None) -> Depot:
        """Where imported bytes are: one of the volume's depots, as it is known, or one that takes nothing new."""
        text = str(address)
        if (known := self.at(text)) is not None:
            return known
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO depots (address, embedded, labels, role, fingerprint, seq)"
                " VALUES (?, 0, '{}', 'draining', ?, ?) ON CONFLICT (address) DO UPDATE SET role = 'draining',"
                " fingerprint = coalesce(excluded.fingerprint, fingerprint), seq = excluded.seq",
                (text, fingerprint, db.seq),
            )
        row, pin = db.rows("SELECT id, fingerprint FROM depots WHERE address = ?", (text,))[0]
        self._start(row, text, 0, "draining", "{}", pin)
        self._warn_of_plain([self._depots[row]])
        return self._depots[row]

    def moved(self, depot: Depot, address: str) -> None:
        """The depot listens somewhere else now; no exNode names its address."""
        depot.address = address
        with self._db.transaction() as db:
            db.execute("UPDATE depots SET address = ?, seq = ? WHERE id = ?", (address, db.seq, depot.id))

    def drop_connections(self) -> None:
        for depot in self._depots.values():
            depot.client.drop_connections()

    async def wait_for_any(self, seconds: float = math.inf) -> bool:
        """Return True as soon as some depot is ok, False after `seconds` (at once where there is none)."""
        if not self._depots:
            return False
        with trio.move_on_after(seconds):
            while not any(depot.answers and depot.status for depot in self._depots.values()):
                async with trio.open_nursery() as nursery:
                    for depot in self._depots.values():
                        nursery.start_soon(_then_cancel, depot.turned, nursery.cancel_scope)
            return True
        return False

    async def wait_for_all(self, seconds: float) -> None:
        """Return when each depot has told its status, has refused to, or is known to be away; or after `seconds`."""
        with trio.move_on_after(seconds):
            while not all(depot.is_settled for depot in self):  # noqa: ASYNC110 (it may turn either way)
                await trio.sleep(0.05)


async def _then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
