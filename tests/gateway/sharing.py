"""A share as a sender makes it, put on a depot by hand: what the gateway hands out must be readable as documented."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.depot.client import DepotClient
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm, seal
from ibpfs.exnode_store.sharing.contents import (
    DIRECTORY,
    FILE,
    Content,
    Copy,
    Entry,
    Run,
    Sender,
    SharedPart,
    SharedSlice,
)
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place
from ibpfs.exnode_store.sharing.notation import to_json
from ibpfs.exnode_store.sharing.record_log import Public, make_entry, make_revocation, public_bytes
from ibpfs.exnode_store.sharing.share_keys import Stretching, record_key

SLICE = 300_000
LEASE = 600
_MTIME = 1_700_000_000_000_000_000


@dataclass
class MadeShare:
    """A link, and what its sender keeps."""

    link: Link
    depot: Address
    write: Key
    manage: list[Key]
    signer: Ed25519PrivateKey
    public: Public


def make_share(depot: str, files: Mapping[str, bytes], **options: object) -> MadeShare:
    """Share one file, or with several (paths with slashes) a directory `tree`. `options`: see `_make`."""
    return trio.run(_make, depot, files, options)


async def _make(text: str, files: Mapping[str, bytes], options: Mapping[str, object]) -> MadeShare:
    passphrase = options.get("passphrase")
    address, signer = Address.parse(text), Ed25519PrivateKey.generate()
    client = DepotClient(address)
    slices: list[SharedSlice] = []
    stored = b""
    parts: dict[str, tuple[SharedPart, ...]] = {}
    for name, data in files.items():
        parts[name] = ()
        for at in range(0, len(data), SLICE):
            piece = data[at : at + SLICE]
            if not any(piece):
                continue  # a hole
            form, key = SliceForm(os.urandom(16), bytes(16), 1, AES_256_GCM, 65536, len(piece)), os.urandom(32)
            parts[name] += (SharedPart(at, at + len(piece), len(slices), 0),)
            slices.append(SharedSlice(form, 0, len(stored), key))
            stored += b"".join(seal(form, key, piece))
    run = await client.allocate(len(stored) + 1, LEASE)
    await client.store(run.write.wire_key, [stored])
    expires = int(time.time()) + int(str(options.get("hold", 3600)))
    now = int(time.time())
    stretching = None
    if passphrase is not None:
        stretching = Stretching("pbkdf2-sha256", os.urandom(16), {"iterations": 10_000})
        if options.get("for_browsers") is False:
            stretching = Stretching.make(os.urandom(16), for_browsers=False)
    pins = {address: bytes.fromhex(str(options["pin"]))} if "pin" in options else {}
    public = Public(public_bytes(signer), now, expires, (address,), stretching, pins)
    sender = Ed25519PrivateKey.generate()
    content = Content(
        str(options.get("name", "tree" if len(files) > 1 else next(iter(files)))), str(options.get("note", "")), now,
        expires, Sender(public_bytes(sender), sender.sign(b"ibpfs-share/1 sender\0" + public.key)),
        (Run(len(stored), (Copy(address, run.read.wire_key),)),), tuple(slices),
        _entries(files, parts, bytes(32) if options.get("changed") else b""),
    )  # fmt: skip
    secret = os.urandom(32)
    stretched = b"" if stretching is None else stretching.stretch(str(passphrase))
    key = record_key(secret, public.share, stretched)
    clear = to_json(content)
    if callable(changing := options.get("changing")):
        row = json.loads(clear)
        changing(row)
        clear = json.dumps(row).encode()
    entry = make_entry(signer, 1, public, clear, key, os.urandom(12))
    record = await client.allocate(len(entry) + 4096, LEASE)
    await client.store(record.write.wire_key, [entry])
    locator = Locator(public.share, expires, (Place(address, record.read.wire_key),))
    await client.aclose()
    link = Link(locator, Fragment(secret, passphrase=passphrase is not None))
    manage = [run.manage.wire_key, record.manage.wire_key]
    return MadeShare(link, address, record.write.wire_key, manage, signer, public)


def _entries(
    files: Mapping[str, bytes], parts: Mapping[str, tuple[SharedPart, ...]], wrong: bytes
) -> tuple[Entry, ...]:
    """`wrong`: a hash that none of them has, or nothing."""

    def file(path: tuple[str, ...], name: str) -> Entry:
        data = files[name]
        return Entry(path, FILE, len(data), _MTIME, 0o644, wrong or hashlib.sha256(data).digest(), parts[name])

    if len(files) == 1:
        return (file((), next(iter(files))),)
    directories = sorted({tuple(name.split("/")[:depth]) for name in files for depth in range(name.count("/") + 1)})
    made = [Entry(path, DIRECTORY, 0, _MTIME, 0o755, None) for path in directories]
    return (*made, *(file(tuple(name.split("/")), name) for name in files))


def revoke(share: MadeShare) -> None:
    """Append a revocation to the record, as a sender does first."""

    async def append() -> None:
        client = DepotClient(share.depot)
        await client.store(share.write, [make_revocation(share.signer, 2, share.public)])
        await client.aclose()

    trio.run(append)


def delete(share: MadeShare) -> None:
    """Take all of it from the depot."""

    async def gone() -> None:
        client = DepotClient(share.depot)
        for key in share.manage:
            await client.decr(key)
        await client.aclose()

    trio.run(gone)
