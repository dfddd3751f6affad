"""Fetching a share's record from the depots that a link names, and opening it."""

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

import trio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ibpfs.depot.wire import CapabilityNotFound, DepotBusy, DepotError, DepotUnreachable, ErrorCode, NoRoom
from ibpfs.errors import DataError, IbpfsError, WrongKey
from ibpfs.exnode_store.lors.work import Depots
from ibpfs.exnode_store.sharing.contents import BadContent, Content
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place
from ibpfs.exnode_store.sharing.notation import from_json
from ibpfs.exnode_store.sharing.record_log import (
    BEGINNING,
    HEADER,
    REVOKED,
    BadRecord,
    Lengths,
    LogEntry,
    parse_entry,
    parse_header,
)
from ibpfs.exnode_store.sharing.share_keys import record_key

#: Entries of one log; each is an extension.
_MOST_ENTRIES: Final = 1000
_PIECE: Final = 4 * 1024 * 1024
#: Of what may be the beginning of one, behind an entry that was cut short.
_MOST_BEGINNINGS: Final = 32
#: Bytes that are searched for it at once; less at the end of the log, where no more are to be had.
_SEARCHED: Final = 64 * 1024
_LEAST_SEARCHED: Final = 128
#: Seconds in which other depots are to give a first byte when one knows the record no more, or an expired one.
_GRACE: Final = 2.0
SENDER_CONTEXT: Final = b"ibpfs-share/1 sender\0"


#: Bytes (offset, length) of a copy of the record.
Load = Callable[[int, int], Awaitable[bytes | bytearray]]


class ShareGone(DataError):
    """The link has expired or was revoked."""


class Revoked(ShareGone):
    """Its sender has signed that."""


async def read_record(depots: Depots, locator: Locator) -> LogEntry:
    """The newest entry of the record that depots give which are about as quick as the first to give one that has not
    expired: its copies there, which missed others, may name depots of yesterday.

    Of an expired one, and where the record is gone, there may be a newer one on depots that do not answer: then
    DepotUnreachable. Else raises ShareGone, BadRecord, or what the last depot said.
    """
    found: list[LogEntry] = []
    troubles: list[IbpfsError] = []
    giving: set[Place] = set()  # who has it is waited for
    began, latest = trio.current_time(), math.inf

    def wait() -> None:
        over = found or any(isinstance(one, ShareGone) for one in troubles)
        grace = trio.current_time() + _GRACE if over and not giving else math.inf
        nursery.cancel_scope.deadline = min(grace, latest)

    async def load(place: Place, offset: int, length: int) -> bytes | bytearray:
        data = await depots.client(place.address).load(place.read, offset, length)
        if place not in giving:
            giving.add(place)
            wait()
        return data

    async def one(place: Place) -> None:
        nonlocal latest
        try:
            found.append(await read_log(partial(load, place), locator.share))
            if not _is_over(found[-1]):
                now = trio.current_time()
                latest = min(latest, now + min(now - began, _GRACE))  # as long again
        except Revoked as error:
            troubles.append(error)
            nursery.cancel_scope.cancel()
        except (CapabilityNotFound, NoRoom):  # ended; or it holds nothing
            troubles.append(ShareGone(""))
        except (DepotError, DepotUnreachable, BadRecord) as error:
            troubles.append(error)
        giving.discard(place)
        wait()

    async with trio.open_nursery() as nursery:
        for place in locator.places:
            nursery.start_soon(one, place)
    return _judge(found, troubles, locator)


def _judge(found: list[LogEntry], troubles: list[IbpfsError], locator: Locator) -> LogEntry:
    if (revoked := next((one for one in troubles if isinstance(one, Revoked)), None)) is not None:
        raise revoked
    newest = max(found, key=lambda one: one.number, default=None)
    if newest is not None and not _is_over(newest):
        return newest
    silent = len(locator.places) - len(found) - sum(isinstance(one, ShareGone | BadRecord) for one in troubles)
    if silent and (newest is not None or any(isinstance(one, ShareGone) for one in troubles)):
        raise _doubt(newest, troubles, locator, silent)
    if newest is not None:
        return newest
    raise _reason(troubles, locator)


def _is_over(entry: LogEntry) -> bool:
    return entry.public.expires <= time.time()


def _doubt(newest: LogEntry | None, troubles: list[IbpfsError], locator: Locator, silent: int) -> DepotUnreachable:
    expires = locator.expires if newest is None else newest.public.expires
    how = f"has expired ({_date(expires)})" if time.time() >= expires else "was revoked by its sender (or lost there)"
    why = next((f" ({one})" for one in troubles if not isinstance(one, ShareGone | BadRecord)), "")
    return DepotUnreachable(
        f"the link {how}, as far as the depots that answer know; {silent} of the {len(locator.places)} that hold its"
        f" record did not answer, and may know better: try again{why}"
    )


def _reason(troubles: list[IbpfsError], locator: Locator) -> IbpfsError:
    if any(isinstance(one, ShareGone) for one in troubles):
        if time.time() >= locator.expires:
            return ShareGone(f"the link has expired ({_date(locator.expires)})")
        return ShareGone("the link was revoked by its sender (or the depots have lost what it points to)")
    wrong = next((one for one in troubles if isinstance(one, BadRecord)), None)
    return wrong or DepotUnreachable(f"no depot of the link answers: {troubles[-1]}")


def _date(when: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))


async def read_log(load: Load, share: bytes) -> LogEntry:
    """The last entry of one copy, whose bytes `load` gives. Raises what that does, NoRoom, BadRecord, Revoked."""
    last: LogEntry | None = None
    at = 0
    for _ in range(_MOST_ENTRIES):
        try:
            head = bytes(await load(at, HEADER.size))
        except (NoRoom, DepotBusy) as error:
            if last is None or not _is_end(error):
                raise
            return last
        try:
            entry = await _entry(load, at, parse_header(head), head, share)
        except (BadRecord, NoRoom, DepotBusy) as error:
            if last is None or not _is_end(error):
                raise
            found = await _behind_a_cut(load, at, share)
            if found is None:
                return last  # one that is being written, or was never finished
            at, entry = found
        if entry.kind == REVOKED:
            raise Revoked("the link was revoked by its sender")
        if last is None or entry.number > last.number:
            last = entry
        at += len(entry.raw)
    raise BadRecord("the share's record has too many entries")


async def _entry(load: Load, at: int, lengths: Lengths, head: bytes, share: bytes) -> LogEntry:
    return parse_entry(head + await _load_whole(load, at + HEADER.size, lengths.body), share)


async def _behind_a_cut(load: Load, start: int, share: bytes) -> tuple[int, LogEntry] | None:
    """The next whole entry, and where it begins: a STORE that broke has left but the beginning of the one at `start`.

    So the next one begins before that would have ended.
    """
    at, end = start, start + 1
    for _ in range(_MOST_BEGINNINGS):
        try:
            head = bytes(await load(at, HEADER.size))
            end = max(end, at + HEADER.size)
            lengths = parse_header(head)
            end = max(end, at + HEADER.size + lengths.body)
            return at, await _entry(load, at, lengths, head, share)
        except (BadRecord, NoRoom, DepotBusy) as error:
            if not _is_end(error):
                raise
            beginning = await _find(load, at + 1, end)
        if beginning is None:
            return None
        at = beginning
    return None


async def _find(load: Load, at: int, end: int) -> int | None:
    """Where the next entry may begin, at most at `end`."""
    size = _SEARCHED
    while at <= end and size >= _LEAST_SEARCHED:
        try:
            data = bytes(await load(at, size))
        except (NoRoom, DepotBusy) as error:
            if not _is_end(error):
                raise
            size //= 8
            continue
        if (found := data.find(BEGINNING)) >= 0:
            return at + found if at + found <= end else None
        at += len(data) - len(BEGINNING) + 1
    return None


def _is_end(error: BadRecord | DepotError) -> bool:
    """Whether no whole entry is there. Behind the last byte depots refuse, or have waited for more: a busy one may have
    more."""
    return not isinstance(error, DepotBusy) or error.code == ErrorCode.SERVER_TIMEOUT


async def _load_whole(load: Load, offset: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        found += await load(offset + len(found), min(_PIECE, length - len(found)))
    return bytes(found)


def open_record(
    entry: LogEntry, link: Link, unwrap: Callable[[bytes], bytes], passphrase: Callable[[], str]
) -> Content:
    """What the record says. `unwrap` opens a secret for recipients; `passphrase` asks for one. Blocks for a second.

    Raises WrongKey, ShareGone, BadRecord.
    """
    fragment = link.fragment
    if _is_over(entry):
        raise ShareGone(f"the link has expired ({_date(entry.public.expires)})")
    secret = _secret(fragment, unwrap)
    stretched = b""
    if fragment.passphrase:
        if entry.public.stretching is None:
            raise BadRecord("the link asks for a passphrase, its record for none")
        stretched = entry.public.stretching.stretch(passphrase())
    try:
        content = from_json(entry.open(record_key(secret, entry.public.share, stretched)))
    except WrongKey:
        wrong = "the passphrase is wrong" if fragment.passphrase else "the link's secret does not open its record"
        raise WrongKey(wrong) from None
    except BadContent as error:
        raise BadRecord(f"what the link points to {error}") from None
    _check_sender(content, entry)
    return replace(content, pins=entry.public.pins)


def _secret(fragment: Fragment, unwrap: Callable[[bytes], bytes]) -> bytes:
    if fragment.wrapped is not None:
        return unwrap(fragment.wrapped)
    assert fragment.secret is not None
    return fragment.secret


def _check_sender(content: Content, entry: LogEntry) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(content.sender.key)
        key.verify(content.sender.signature, SENDER_CONTEXT + entry.public.key)
    except (InvalidSignature, ValueError):
        raise BadRecord("the sender's signature is not theirs") from None
