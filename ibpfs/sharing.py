"""What the owner of a volume does for `ibpfs share`: links made, listed, extended and revoked, and kept.

Knows the rooms of an open volume; no terminal.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ibpfs.cache.files import FileCache
from ibpfs.control import Command, Progress
from ibpfs.depot.address import Address
from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.errors import DataError, DeadlineExceeded, NoSpace, UsageError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.depots import DepotSet
from ibpfs.exnode_store.imports import Imports
from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.ledger import Ledger
from ibpfs.exnode_store.placement import FAILED
from ibpfs.exnode_store.policies import Policies
from ibpfs.exnode_store.recoding import Recoding
from ibpfs.exnode_store.schema import MAX_INO
from ibpfs.exnode_store.sharing.contents import FILE, BadContent, Content, Entry, Sender
from ibpfs.exnode_store.sharing.ending import intended, rows_of
from ibpfs.exnode_store.sharing.keeping import Keeper
from ibpfs.exnode_store.sharing.links import (
    SECRET_SIZE,
    Fragment,
    Link,
    Locator,
    Place,
    share_name,
)
from ibpfs.exnode_store.sharing.making import Made, Maker, Wishes, clamped, entry_of
from ibpfs.exnode_store.sharing.placing import Placing, asking_once
from ibpfs.exnode_store.sharing.planning import Pieces
from ibpfs.exnode_store.sharing.record_log import public_bytes, remote
from ibpfs.exnode_store.sharing.share_keys import Stretching, record_key, wrap_secret
from ibpfs.exnode_store.sharing.share_state import ACTIVE, ENDING, RECORD, Share
from ibpfs.exnode_store.sharing.shares import Shares
from ibpfs.exnode_store.sharing.tree import Found, Walk

_log = logging.getLogger(__name__)

#: Seconds between looks at the shares' leases.
_LOOK_EVERY: Final = 300.0
#: And between looks at whether there is something to do sooner.
_SOON: Final = 5.0
#: Seconds that depots may take nothing of what waits for upload.
_PATIENCE: Final = 30.0
#: Seconds for which status is told what was found out before: every share is opened for it.
_TOLD_FOR: Final = 30.0
#: Files whose slices are looked up before others get their turn.
_FILES_AT_ONCE: Final = 100
#: Zeros of holes that are hashed for one link: a sparse file has them without end, and no frame is of them.
_MOST_ZEROS: Final = 4 * 1024**3
_LONGEST: Final = 100 * 366 * 86400
SENDER_CONTEXT: Final = b"ibpfs-share/1 sender\0"


@dataclass(frozen=True)
class _Asked:
    """A request to share."""

    ino: int
    path: str
    name: str
    note: str
    wishes: Wishes
    passphrase: str | None
    recipients: list[str]
    near: str | None
    gateway: str | None
    for_browsers: bool


class Sharing:
    """The commands of one open volume, and the task that keeps what they promised."""

    def __init__(
        self, db: Database, ledger: Ledger, depots: DepotSet, files: FileCache, imports: Imports, keys: VolumeKeys,
        recoding: Recoding,
    ) -> None:  # fmt: skip
        self._db = db
        self._ledger = ledger
        self._files = files
        self._depots = depots
        self._sender = Ed25519PrivateKey.from_private_bytes(keys.sender_seed)
        self._shares = Shares(db, ledger, keys)
        self._placing = Placing(depots)
        self._recoding = recoding
        self._policies = Policies(db)
        self._maker = Maker(ledger, self._placing, files.stored, imports.slice_key)
        self._keeper = Keeper(self._shares, ledger, self._placing)
        self._turn = trio.Lock()  # of links that are in the store
        self._filling = trio.Lock()  # of one that is not yet, for as long as it takes; is had before the other
        self._told: tuple[str | None, float, float | None] | None = None

    def commands(self) -> dict[str, Command]:
        return {
            "share": self._share, "share-list": self._list, "share-info": self._info, "share-extend": self._extend,
            "share-revoke": self._revoke,
        }  # fmt: skip

    async def run(self) -> None:
        """Keep the shares' leases, and give back what has expired; for ever."""
        try:
            async with self._filling, self._turn:
                self._shares.drop_strays()
                self._shares.note_leases()
            soon = _SOON
            while True:
                async with self._in_turn():
                    await self._keeper.tend()
                soon = min(2 * soon, _LOOK_EVERY) if await self._rest(soon) else _SOON
        finally:
            with trio.CancelScope(shield=True):
                await self._placing.aclose()

    async def _rest(self, soon: float) -> bool:
        """Until it is time for the next look, or a depot answers again that has something of what was ended; return
        whether that is why. Looked for every `soon` seconds: one may tell its status, and not answer all the same."""
        with trio.move_on_after(self._next_look()):
            while True:
                await trio.sleep(soon)
                if self._keeper.has_more_to_end():
                    return True
        return False

    def _next_look(self) -> float:
        now = time.time()  # what expired before it, and is left on depots that do not answer, can wait
        first = self._db.value("SELECT min(expires) FROM shares WHERE expires > ?", (now,))
        return _LOOK_EVERY if first is None else min(_LOOK_EVERY, max(1.0, first - now))

    def hold_until(self) -> float | None:
        """Until when every link holds with this machine off; None without any link. May lag behind renewals."""
        changed, now = self._db.value("SELECT max(seq) || '/' || count(*) FROM shares"), trio.current_time()
        if self._told is None or self._told[0] != changed or now > self._told[1] + _TOLD_FOR:
            ends = [self._keeper.hold_until(share) for share in self._shares.all() if share.stage == ACTIVE]
            self._told = changed, now, min(ends, default=None)
        return self._told[2]

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        async with self._turn:
            with asking_once():
                yield

    # Making

    async def _share(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """See `_asked`."""
        asked = _asked(request)
        walk = Walk(self._db)
        secret = os.urandom(SECRET_SIZE)
        share = await self._begin(asked, secret)
        begun, name = share.content, share_name(share.share)
        wrapped = wrap_secret(secret, asked.recipients) if asked.recipients else None
        async with self._filling:
            self._keeper.making.add(name)
            try:
                self._shares.save(share)  # before anything is made for it
                await self._fill(share, asked, walk, Made(self._shares.term(share)), progress)
                async with self._in_turn():
                    await self._promise(share, asked, secret, wrapped)
            except BaseException:
                with trio.CancelScope(shield=True), trio.move_on_after(10.0):
                    self._shares.complete(share)
                    share.content, share.stage = begun, ENDING
                    self._shares.save(share)
                    async with self._in_turn():
                        await self._keeper.end(share)
                raise
            finally:
                self._keeper.making.discard(name)
        return self._described(share) | {"left_out": walk.left_out, "left_out_kinds": dict(walk.unfit), "id": name}

    async def _begin(self, asked: _Asked, secret: bytes) -> Share:
        """Raises UsageError when it cannot be called so."""
        signer = Ed25519PrivateKey.generate()
        public = public_bytes(signer)
        sender = Sender(self._sender.public_key().public_bytes_raw(), self._sender.sign(SENDER_CONTEXT + public))
        stretching, stretched = None, b""
        if asked.passphrase is not None:
            stretching = Stretching.make(os.urandom(16), for_browsers=asked.for_browsers)
            stretched = await trio.to_thread.run_sync(stretching.stretch, asked.passphrase)
        content = Content(asked.name, asked.note, int(time.time()), asked.wishes.expires, sender, (), (),
                          (Entry((), FILE, 0, 0, 0, None),))  # fmt: skip
        _check(content, asked.path)
        share = Share(asked.path, signer, b"", content, gateway=asked.gateway, stretching=stretching,
                      recipients=len(asked.recipients))  # fmt: skip
        share.key = record_key(secret, share.share, stretched)
        return share

    async def _fill(self, share: Share, asked: _Asked, walk: Walk, made: Made, progress: Progress) -> None:
        progress(0, 1, "waiting for the depots")
        self._check_depots()
        found, sizes, pieces = await self._gather(share, asked, walk, progress)
        progress(0, 1, "")
        total = sum(sizes)
        try:
            await self._recoding.make_whole({piece.source.segment for file in pieces for piece in file})
        except (DepotError, DepotUnreachable, DataError, NoSpace) as error:
            _log.info("what is stored as shards is copied for a link: %s", error)
        # What is copied for a link is to last as the file does.
        copies = max(asked.wishes.copies, self._policies.of(asked.ino).copies)
        await self._maker.make(pieces, replace(asked.wishes, copies=copies), made)
        if asked.near is not None:
            await self._maker.copy_to(asked.near, made)
        await self._more_copies(asked.wishes.copies, made)
        await self._maker.copy_for_others(made, asked.wishes.copy_limit)
        entries = []
        done, left = 0, _MOST_ZEROS
        for one, size, file, parts in zip(found, sizes, pieces, made.parts, strict=True):
            zeros = size - sum(piece.stop - piece.start for piece in file)
            wanted = asked.wishes.hashes and one.kind == FILE and zeros <= left
            left -= zeros if wanted else 0
            advance = partial(_advance, progress, done, total)
            hashed = await self._maker.sha256(file, size, advance) if wanted else None
            entries.append(entry_of(one, size, hashed, parts))
            done += size
            progress(done, total, "")
        share.content = replace(
            share.content, runs=tuple(made.runs), slices=tuple(made.slices), entries=tuple(entries)
        )
        share.aliases, share.owned, share.copied_bytes = list(made.aliases), list(made.owned), made.copied_bytes
        share.depot_bytes = made.depot_bytes
        _check(share.content, asked.path)

    async def _gather(
        self, share: Share, asked: _Asked, walk: Walk, progress: Progress
    ) -> tuple[list[Found], list[int], list[Pieces]]:
        """What is shared as it is now: from here on its segments stay where they are."""
        await self._flushed(asked.ino, progress)
        found: list[Found] = []
        sizes: list[int] = []
        pieces: list[Pieces] = []
        segments: set[int] = set()
        for one in walk.below(asked.ino):
            size, file = self._snapshot(one)
            segments |= {piece.source.segment for piece in file}
            found.append(one)
            sizes.append(size)
            pieces.append(file)
            if len(found) % _FILES_AT_ONCE == 0:
                self._hold(share, segments)
                await trio.lowlevel.checkpoint()
        self._hold(share, segments)
        return found, sizes, pieces

    def _hold(self, share: Share, segments: set[int]) -> None:
        if segments:
            self._shares.hold(share_name(share.share), segments, share.expires)
            segments.clear()

    def _check_depots(self) -> None:
        """DepotUnreachable while all are known to be away: nobody waits for them."""
        depots = list(self._depots)
        if all(one.state == FAILED for one in depots):
            told = depots[0].trouble if depots else ""
            raise DepotUnreachable(f"no depot of this volume answers{told and f': {told}'} (see ibpfs depots)")

    async def _flushed(self, ino: int, progress: Progress) -> None:
        """DeadlineExceeded when the depots take nothing of it for long."""
        best = -1
        with trio.CancelScope(deadline=trio.current_time() + _PATIENCE) as scope:

            def advance(done: int, total: int) -> None:
                nonlocal best
                if done > best:
                    best, scope.deadline = done, trio.current_time() + _PATIENCE
                progress(done, total, "waiting for the depots")

            if self._files.inode(ino).is_directory:
                await self._files.flush(advance)
            else:
                await self._files.store(ino, advance)
            return
        raise DeadlineExceeded("what is to be shared is not on the depots yet (see ibpfs status)")

    def _snapshot(self, one: Found) -> tuple[int, Pieces]:
        if one.kind != FILE:
            return 0, []
        size: int = self._db.value("SELECT size FROM inodes WHERE ino = ?", (one.ino,)) or 0
        return size, clamped(list(self._ledger.extents(one.ino)), size)

    async def _more_copies(self, copies: int, made: Made) -> None:
        """Where runs have fewer copies than was asked for, have them copied to depots that have none."""
        for depot in self._placing.addresses():
            if min((len(run.copies) for run in made.runs), default=copies) >= copies:
                return
            if not any(str(one.depot) == depot for run in made.runs for one in run.copies):
                await self._maker.copy_to(depot, made)

    async def _promise(self, share: Share, asked: _Asked, secret: bytes, wrapped: bytes | None) -> None:
        """The record is written, all of it is in the store, and leased for as long as it can be."""
        self._shares.complete(share)  # filling may have taken so long that leases were renewed
        await self._keeper.write_record(share, max(2, asked.wishes.copies))
        records = [one for one in share.owned if one.kind == RECORD]
        places = tuple(Place(Address.parse(one.depot), one.read) for one in records)
        fragment = Fragment(None if wrapped else secret, wrapped, asked.passphrase is not None)
        share.link = Link(Locator(share.share, share.expires, places), fragment)
        self._shares.save(share)
        await self._db.sync()
        troubles = await self._keeper.keep(share, share.expires)
        if self._keeper.hold_until(share) <= time.time():
            raise DepotUnreachable(f"the link would not hold: {troubles[0] if troubles else 'leases are too short'}")
        share.stage = ACTIVE
        self._shares.save(share)
        await self._db.sync()

    # Looking

    async def _list(self, _: Mapping[str, Any], __: Progress) -> list[dict[str, Any]]:
        return [self._described(share) for share in self._shares.all() if share.link is not None]

    async def _info(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        share = self._shares.get(str(request.get("id")))
        places = dict.fromkeys(str(one.depot) for run in share.content.runs for one in run.copies)
        return self._described(share) | {
            "depots": list(places),
            "records": [one.depot for one in share.owned if one.kind == RECORD],
            "sender": share.content.sender.key.hex(),
            "files_list": ["/".join(entry.path) for entry in share.content.entries if entry.kind == FILE][:1000],
        }

    def _described(self, share: Share) -> dict[str, Any]:
        content = share.content
        first = content.entries[0]
        return {
            "id": share_name(share.share),
            "link": share.link.render(share.gateway) if share.link else None,
            "ibpfs_link": share.link.render() if share.link else None,
            "path": share.path,
            "name": content.name,
            "type": first.kind,
            "size": content.size,
            "files": content.files,
            "links": content.links,
            "sha256": first.sha256.hex() if first.sha256 else None,
            "created": content.created,
            "expires": content.expires,
            "hold_until": int(self._keeper.hold_until(share)),
            "note": content.note,
            "passphrase": share.stretching is not None,
            "recipients": share.recipients,
            "state": share.stage if share.stage == ENDING or share.expires > time.time() else "expired",
            "aliased_bytes": content.size - min(share.copied_bytes, content.size),
            "copied_bytes": share.copied_bytes,
            "depot_copied_bytes": share.depot_bytes,
            "revocation": intended(share),
            "this_machine_only": share.is_local,
        }

    # Extending and revoking

    async def _extend(self, request: Mapping[str, Any], _: Progress) -> dict[str, Any]:
        async with self._in_turn():
            share = self._shares.get(str(request.get("id")))
            if share.stage == ACTIVE:
                await self._keeper.catch_up(share)
            if share.stage != ACTIVE or share.expires <= time.time():
                raise UsageError(f"{share_name(share.share)}: has ended; share it again")
            expires = _expiry(request)
            if expires <= share.expires:
                raise UsageError(f"{share_name(share.share)}: holds longer than that already")
            troubles = await self._keeper.extend(share, expires)
            await self._db.sync()
            return self._described(share) | {"troubles": troubles}

    async def _revoke(self, request: Mapping[str, Any], progress: Progress) -> list[dict[str, Any]]:
        """ids, or path: all links of it and of what is below."""
        names = [str(one) for one in request.get("ids") or ()]
        path = request.get("path")
        async with self._in_turn():
            if path is not None:
                found = [share for share in self._shares.all() if _is_below(share.path, str(path))]
                found = [share for share in found if share_name(share.share) not in self._keeper.making]
                if not found:
                    raise UsageError(f"{path}: there are no links to it")
            else:
                found = [self._shares.get(name) for name in names]
            told = []
            for number, share in enumerate(found):
                ended = await self._keeper.end(share)
                told.append({
                    "id": share_name(share.share), "name": share.content.name,
                    "ended": rows_of([(one, "") for one in ended.done], share.expires),
                    "left": rows_of(ended.left, share.expires),
                })  # fmt: skip
                progress(number + 1, len(found), "")
            await self._db.sync()
            return told


def _advance(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total, "")


def _check(content: Content, path: str) -> None:
    try:
        content.check()
    except BadContent as error:
        raise UsageError(f"{path}: cannot be shared: it {error}") from None


def _asked(request: Mapping[str, Any]) -> _Asked:
    """Raises UsageError: the request is no such, or asks for what cannot be."""
    try:
        wishes = Wishes(
            _expiry(request), int(request.get("copies") or 1), int(request["copy_limit"]), bool(request["hashes"])
        )
        if int(request["ino"]) >= MAX_INO:
            raise UsageError(f"{request.get('path')}: lies in a snapshot; copy it out of it, then share the copy")
        near, passphrase = request.get("near"), request.get("passphrase")
        return _Asked(
            int(request["ino"]), str(request["path"]), str(request["name"]), str(request.get("note") or ""), wishes,
            None if passphrase is None else str(passphrase), [str(one) for one in request.get("recipients") or ()],
            None if near is None else str(remote(str(near))), request.get("gateway"), bool(request["for_browsers"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not a request to share a file: {type(error).__name__}") from None


def _expiry(request: Mapping[str, Any]) -> int:
    seconds = request.get("seconds")
    if not isinstance(seconds, int | float) or not 1 <= seconds <= _LONGEST:
        raise UsageError("a link expires after a second to a hundred years")
    return int(time.time() + seconds)


def _is_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")
