"""Making the content of a share: windows on slices as they lie, private copies of the rest, a hash of every file."""

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ibpfs.depot.address import Address
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import UsageError
from ibpfs.exnode_store.depots import Depot
from ibpfs.exnode_store.extents import Piece
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.ledger_rows import SliceRef
from ibpfs.exnode_store.sealing import AES_256_GCM, FRAME_SIZE, Buffer, SliceForm, seal
from ibpfs.exnode_store.sharing.contents import FILE, Copy, Entry, Run, SharedPart, SharedSlice
from ibpfs.exnode_store.sharing.placing import Placing, place_of, side_by_side
from ibpfs.exnode_store.sharing.planning import Excerpt, Pieces, SharePlan, StoredSpan, plan_share
from ibpfs.exnode_store.sharing.share_state import COPY, Alias, Owned, Term
from ibpfs.exnode_store.sharing.tree import Found
from ibpfs.quantities import format_size

_log = logging.getLogger(__name__)

Read = Callable[[SliceRef, int, int], Awaitable[Buffer]]
#: Bytes that are read, hashed or sealed at once.
_PIECE: Final = 4 * 1024 * 1024
#: A private copy is cut into allocations of about so much.
_RUN: Final = 16 * 1024 * 1024
_ZEROS: Final = bytes(_PIECE)


@dataclass(frozen=True)
class Wishes:
    """What the sender asks for. `copy_limit`: bytes of private copies at most; `copies`: of these, how many depots."""

    expires: int
    copies: int
    copy_limit: int
    hashes: bool


@dataclass
class Made:
    """What was made, in the order that the record names it; all of it is noted as `term` has it."""

    term: Term
    runs: list[Run] = field(default_factory=list)
    slices: list[SharedSlice] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    owned: list[Owned] = field(default_factory=list)
    copied_bytes: int = 0  # of files, in private copies; `depot_bytes` of these depots copied by themselves
    depot_bytes: int = 0
    #: Per file its parts, not in order yet.
    parts: list[list[SharedPart]] = field(default_factory=list)


class Maker:
    """One per open volume."""

    def __init__(self, ledger: Ledger, placing: Placing, read: Read, slice_key: Callable[[int, bytes], bytes]) -> None:
        self._ledger = ledger
        self._placing = placing
        self._read = read
        self._slice_key = slice_key

    async def make(self, files: Sequence[Pieces], wishes: Wishes, made: Made) -> None:
        """Fill `made`, whatever happens then: what it has when an error comes must be given back.

        Raises UsageError when too much must be copied, DepotUnreachable when depots do not take it.
        """
        found: dict[StoredSpan, Sequence[Alias | Owned]] = {}
        refused: set[int] = set()

        def is_refused(ref: SliceRef) -> bool:
            foreign = all(one.imported for one in self._ledger.replicas(ref.segment))
            return ref.row in refused or foreign or self._ledger.coded(ref.segment) is not None

        plan = plan_share(files, is_refused)
        # Of a plan with fewer windows more slices are left, but no other spans than parts of these.
        while lacking := [span for span in plan.spans if span not in found]:
            await side_by_side([partial(self._open, span, found, made) for span in lacking])
            without = [span for span in lacking if not found[span]]
            made.copied_bytes = plan.copied_bytes + sum(span.clear_length for span in without)
            _check_limit(made.copied_bytes, wishes.copy_limit)
            await side_by_side([partial(self._copy_there, span, wishes.copies, found, made) for span in without], 4)
            refused.update(ref.row for span in without if not found[span] for ref in span.slices)
            plan = plan_share(files, is_refused)
        made.copied_bytes = plan.copied_bytes + made.depot_bytes
        _check_limit(made.copied_bytes, wishes.copy_limit)
        made.parts = [[] for _ in files]
        self._name_runs(files, plan, found, made)
        await self._copy(plan, wishes.copies, made)
        for parts in made.parts:
            parts.sort(key=lambda part: part.start)

    # As they lie

    async def _open(self, span: StoredSpan, found: dict[StoredSpan, Sequence[Alias | Owned]], made: Made) -> None:
        opened: list[Alias] = []
        for replica in self._ledger.replicas(span.segment):
            alias = await self._placing.alias(replica, span.offset, span.length, made.term)
            if alias is not None:
                opened.append(alias)
                made.aliases.append(alias)
        found[span] = opened

    async def _copy_there(
        self, span: StoredSpan, copies: int, found: dict[StoredSpan, Sequence[Alias | Owned]], made: Made
    ) -> None:
        """Where no window is to be had, depots copy the sealed slices themselves; nothing of it comes here."""
        done: list[Owned] = []
        replicas = self._ledger.replicas(span.segment)
        for depot in self._placing.places():
            if len(done) == copies:
                break
            owned = await self._placing.copy_replica(replicas, span.offset, span.length, depot, made.term)
            if owned is not None:
                done.append(owned)
                made.owned.append(owned)
        found[span] = done
        made.depot_bytes += span.clear_length if done else 0

    def _name_runs(
        self, files: Sequence[Pieces], plan: SharePlan, found: dict[StoredSpan, Sequence[Alias | Owned]], made: Made
    ) -> None:
        numbers: dict[int, int] = {}
        for span in plan.spans:
            copies = tuple(copy_of(one) for one in found[span])
            made.runs.append(Run(span.length, copies))
            for ref in span.slices:
                key = self._slice_key(ref.form.epoch, ref.form.slice_id)
                numbers[ref.row] = len(made.slices)
                made.slices.append(SharedSlice(ref.form, len(made.runs) - 1, ref.segment_offset - span.offset, key))
        for number, file in enumerate(files):
            for piece in file:
                if piece.source.row in numbers:
                    slice_ = numbers[piece.source.row]
                    made.parts[number].append(SharedPart(piece.start, piece.stop, slice_, piece.offset))

    # Sealed anew

    async def _copy(self, plan: SharePlan, copies: int, made: Made) -> None:
        depots = self._placing.places()
        waiting: list[Buffer] = []
        length = 0
        for group in plan.anew:
            form, key, sealed = await self._seal(group)
            made.slices.append(SharedSlice(form, len(made.runs), length, key))
            _note_parts(group, len(made.slices) - 1, made)
            waiting += sealed
            length += form.stored_length
            if length >= _RUN or group is plan.anew[-1]:
                await self._store(waiting, length, depots, copies, made)
                waiting, length = [], 0

    async def _seal(self, group: list[Excerpt]) -> tuple[SliceForm, bytes, list[bytes | memoryview]]:
        """Under a random id and key: nothing of the volume's opens it, and it opens nothing of the volume's."""
        data = bytearray()
        for one in group:
            piece = one.piece
            data += await self._read(piece.source, piece.offset, piece.offset + piece.stop - piece.start)
        form = SliceForm(os.urandom(16), bytes(16), 0, AES_256_GCM, FRAME_SIZE, len(data))
        key = os.urandom(32)
        return form, key, await trio.to_thread.run_sync(seal, form, key, data)

    async def _store(
        self, pieces: list[Buffer], length: int, depots: Sequence[Depot], copies: int, made: Made
    ) -> None:
        stored = await store_on(self._placing, depots, COPY, pieces, copies, length, made.term)
        made.owned += stored
        made.runs.append(Run(length, tuple(copy_of(one) for one in stored)))

    # More copies

    async def copy_for_others(self, made: Made, limit: int) -> None:
        """What lies where nobody on another machine reaches it, to a depot that others reach; if one takes so much."""
        for address in self._placing.addresses():
            here = [at for at, run in enumerate(made.runs) if all(one.depot.is_local for one in run.copies)]
            size = sum(made.runs[at].length for at in here)
            if not here or size > limit:
                return
            if not Address.parse(address).is_local:
                try:
                    await self.copy_to(address, made, here)
                except (DepotError, DepotUnreachable) as error:
                    _log.info("depot %s: %s for a link are not copied there: %s", address, format_size(size), error)

    async def copy_to(self, address: str, made: Made, which: Sequence[int] | None = None) -> None:
        """Have the depots copy these runs (None: all of it) to that one. Raises DepotError, DepotUnreachable."""

        async def one(number: int) -> None:
            run = made.runs[number]
            trouble: Exception | None = None
            for source in run.copies:
                try:
                    owned = await self._placing.copy(
                        str(source.depot), source.read, source.base, run.length, address, made.term
                    )
                except (DepotError, DepotUnreachable) as error:
                    trouble = error
                    continue
                made.owned.append(owned)
                made.runs[number] = Run(run.length, (*run.copies, copy_of(owned)))
                return
            assert trouble is not None
            raise trouble

        await side_by_side([partial(one, number) for number in (range(len(made.runs)) if which is None else which)], 4)

    # Hashes

    async def sha256(self, pieces: Pieces, size: int, advance: Callable[[int], None]) -> bytes:
        """Of the whole file, holes being zeros. `advance` is told how many bytes of it are hashed."""
        found = hashlib.sha256()
        at = 0
        for piece in pieces:
            await _hash_zeros(found, at, piece.start, advance)
            for start in range(piece.start, piece.stop, _PIECE):
                part = piece.cut(start, min(start + _PIECE, piece.stop))
                data = await self._read(part.source, part.offset, part.offset + part.stop - part.start)
                await trio.to_thread.run_sync(found.update, data)
                advance(part.stop)
            at = piece.stop
        await _hash_zeros(found, at, size, advance)
        return found.digest()


async def _hash_zeros(found: "hashlib._Hash", start: int, stop: int, advance: Callable[[int], None]) -> None:
    for at in range(start, stop, _PIECE):
        await trio.to_thread.run_sync(found.update, _ZEROS[: stop - at])
        advance(min(at + _PIECE, stop))


def _check_limit(copied: int, limit: int) -> None:
    if copied > limit:
        raise UsageError(
            f"{format_size(copied)} of it must be copied for the link, more than {format_size(limit)};"
            " --copy-limit allows more"
        )


def _note_parts(group: list[Excerpt], number: int, made: Made) -> None:
    at = 0
    for one in group:
        made.parts[one.file].append(SharedPart(one.piece.start, one.piece.stop, number, at))
        at += one.length


async def store_on(
    placing: Placing, depots: Sequence[Depot], kind: str, pieces: Sequence[Buffer], copies: int, room: int, term: Term
) -> list[Owned]:
    """Store the same on up to `copies` of the depots. When none takes it, raises what the last one said."""
    stored: list[Owned] = []
    trouble: Exception = DepotUnreachable("no depot of this volume takes what a link needs")
    for depot in depots:
        address = place_of(depot)
        if len(stored) == copies or address is None:
            break
        try:
            stored.append(await placing.store(address, kind, pieces, room, term))
        except (DepotError, DepotUnreachable) as error:
            trouble = error
    if not stored:
        raise trouble
    return stored


def copy_of(one: Alias | Owned) -> Copy:
    return Copy(Address.parse(one.depot), one.read)


def entry_of(found: Found, size: int, sha256: bytes | None, parts: Sequence[SharedPart]) -> Entry:
    if found.kind != FILE:
        return Entry(found.path, found.kind, 0, found.mtime_ns, found.mode, None, target=found.target)
    return Entry(found.path, found.kind, size, found.mtime_ns, found.mode, sha256, tuple(parts))


def clamped(pieces: Sequence[Piece[SliceRef]], size: int) -> list[Piece[SliceRef]]:
    """Those within the file."""
    return [piece.cut(0, size) for piece in pieces if piece.start < size]
