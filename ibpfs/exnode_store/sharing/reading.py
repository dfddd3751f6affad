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
from ibpfs.exnode_store.sharing.record_log import HEADER, REVOKED, BadRecord, LogEntry, parse_entry, parse_header
from ibpfs.exnode_store.sharing.share_keys import record_key

#: Entries of one log; each is an extension.
_MOST_ENTRIES: Final = 1000
_PIECE: Final = 4 * 1024 * 1024
#: Seconds in which other depots are to give a first byte when one knows the record no more.
_GRACE: Final = 2.0
SENDER_CONTEXT: Final = b"ibpfs-share/1 sender\0"


#: Bytes (offset, length) of a copy of the record.
Load = Callable[[int, int], Awaitable[bytes | bytearray]]


class ShareGone(DataError):
    """The link has expired or was revoked."""


async def read_record(depots: Depots, locator: Locator) -> LogEntry:
    """The last entry of the record, from the depot that gives one first.

    Raises ShareGone, BadRecord, or what the last depot said.
    """
    found: list[LogEntry] = []
    troubles: list[IbpfsError] = []
    giving: set[Place] = set()  # who has it is waited for

    def wait() -> None:
        gone = any(isinstance(one, ShareGone) for one in troubles) and not giving
        nursery.cancel_scope.deadline = trio.current_time() + _GRACE if gone else math.inf

    async def load(place: Place, offset: int, length: int) -> bytes | bytearray:
        data = await depots.client(place.address).load(place.read, offset, length)
        if place not in giving:
            giving.add(place)
            wait()
        return data

    async def one(place: Place) -> None:
        try:
            found.append(await read_log(partial(load, place), locator.share))
            nursery.cancel_scope.cancel()
            return
        except (CapabilityNotFound, NoRoom, ShareGone):  # ended; or it holds nothing
            troubles.append(ShareGone(""))
        except (DepotError, DepotUnreachable, BadRecord) as error:
            troubles.append(error)
        giving.discard(place)
        wait()

    async with trio.open_nursery() as nursery:
        for place in locator.places:
            nursery.start_soon(one, place)
    if found:
        return found[0]
    raise _reason(troubles, locator)


def _reason(troubles: list[IbpfsError], locator: Locator) -> IbpfsError:
    if any(isinstance(one, ShareGone) for one in troubles):
        if time.time() >= locator.expires:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(locator.expires))
            return ShareGone(f"the link has expired ({when})")
        return ShareGone("the link was revoked by its sender (or the depots have lost what it points to)")
    wrong = next((one for one in troubles if isinstance(one, BadRecord)), None)
    return wrong or DepotUnreachable(f"no depot of the link answers: {troubles[-1]}")


async def read_log(load: Load, share: bytes) -> LogEntry:
    """The last entry of one copy, whose bytes `load` gives. Raises what that does, NoRoom, BadRecord, ShareGone."""
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
            lengths = parse_header(head)
            body = await _load_whole(load, at + HEADER.size, lengths.body)
            entry = parse_entry(head + body, share)
            if last is not None and entry.number <= last.number:
                raise BadRecord("the share's record is out of order")
        except (BadRecord, NoRoom):
            if last is None:
                raise
            return last  # one that is being written, or was never finished
        if entry.kind == REVOKED:
            raise ShareGone("")
        last = entry
        at += len(entry.raw)
    raise BadRecord("the share's record has too many entries")


def _is_end(error: DepotError) -> bool:
    """Whether that is what a depot says behind the last byte: some have waited there for more."""
    return isinstance(error, NoRoom) or error.code == ErrorCode.SERVER_TIMEOUT


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
    if entry.public.expires <= time.time():
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry.public.expires))
        raise ShareGone(f"the link has expired ({when})")
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
