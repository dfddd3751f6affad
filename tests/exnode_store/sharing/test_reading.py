"""Records read from depots of this process: the last entry counts, and what is wrong is said."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ibpfs.depot.address import Address
from ibpfs.depot.capability import CapabilitySet, Key
from ibpfs.depot.client import DepotClient
from ibpfs.depot.wire import DepotBusy, DepotUnreachable, ErrorCode, error_for
from ibpfs.errors import DataError, UsageError, WrongKey
from ibpfs.exnode_store.lors.work import Depots
from ibpfs.exnode_store.sealing import seal
from ibpfs.exnode_store.sharing.contents import Copy, Run, Sender
from ibpfs.exnode_store.sharing.fetching import Unavailable, best_first, fetch_part, stream
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place
from ibpfs.exnode_store.sharing.notation import to_json
from ibpfs.exnode_store.sharing.reading import SENDER_CONTEXT, ShareGone, open_record, read_log, read_record
from ibpfs.exnode_store.sharing.receiving import Receiver, file_name
from ibpfs.exnode_store.sharing.record_log import (
    HEADER,
    BadRecord,
    Public,
    make_entry,
    make_revocation,
    public_bytes,
    share_id,
)
from ibpfs.exnode_store.sharing.share_keys import record_key
from tests.cache.stack import run_depot

from .test_notation import CONTENT, PART, PLAIN, SLICE

SIGNER, SENDER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = Public(public_bytes(SIGNER), 1, 1 << 33, (Address("depot.example", 6714),))
SHARE, SECRET = share_id(PUBLIC.key), bytes(range(32))
KEY = record_key(SECRET, SHARE)
CLEAR = bytes(range(100))
SIGNED = Sender(public_bytes(SENDER), SENDER.sign(SENDER_CONTEXT + PUBLIC.key))


class Local(Depots):
    """All addresses are that of one depot of this process; `down` answers nothing."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.socket = socket

    def client(self, address: Address) -> DepotClient:
        return super().client(Address(path=f"{self.socket}{'.none' if address.host == 'down' else ''}"))


@asynccontextmanager
async def depot(directory: Path) -> AsyncIterator[Local]:
    async with run_depot(directory):
        local = Local(directory / "depot.sock")
        try:
            yield local
        finally:
            await local.aclose()


async def stored(depots: Depots, data: bytes) -> CapabilitySet:
    client = depots.client(Address("one", 1))
    caps = await client.allocate(10_000, 600)
    if data:
        await client.store(caps.write.wire_key, [data])
    return caps


def place(caps: CapabilitySet, host: str = "one") -> Place:
    return Place(Address(host, 1), caps.read.wire_key)


def locator(*places: Place, expires: int = 1 << 33) -> Locator:
    return Locator(SHARE, expires, places)


def entry(number: int = 1, clear: bytes = b"x", public: Public = PUBLIC) -> bytes:
    return make_entry(SIGNER, number, public, clear, KEY, os.urandom(12))


async def test_the_last_whole_entry_counts(tmp_path: Path) -> None:
    async with depot(tmp_path) as depots:
        caps = await stored(depots, entry(1) + entry(2, b"newer") + entry(3)[:-1])
        found = await read_record(depots, locator(place(caps)))
        assert (found.number, found.open(KEY)) == (2, b"newer")


async def test_some_depots_wait_behind_the_last_byte() -> None:
    data = entry(1) + entry(2)

    async def load(offset: int, length: int) -> bytes:
        if offset + length > len(data):
            raise error_for(ErrorCode.SERVER_TIMEOUT)
        return data[offset : offset + length]

    assert (await read_log(load, SHARE)).number == 2
    for cut in (HEADER.size - 1, HEADER.size + 100):
        data = entry(1) + entry(2)[:cut]
        assert (await read_log(load, SHARE)).number == 1
    data = b""
    with pytest.raises(DepotBusy):
        await read_log(load, SHARE)


async def test_a_busy_depot_has_not_said_that_this_is_the_end() -> None:
    """Whenever it is: in a record with a cut, each answer may be the one that hides the entry behind."""
    data = entry(1) + entry(2)[: HEADER.size + 100] + entry(3)
    given, busy = 0, -1

    async def load(offset: int, length: int) -> bytes:
        nonlocal given
        given += 1
        if given == busy:
            raise error_for(ErrorCode.SERVER_RECOVERING)
        if offset + length > len(data):
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        return data[offset : offset + length]

    assert (await read_log(load, SHARE)).number == 3
    for number in range(1, given + 1):
        given, busy = 0, number
        with pytest.raises(DepotBusy):
            await read_log(load, SHARE)


@pytest.mark.parametrize("cut", [1, 7, HEADER.size - 1, HEADER.size, HEADER.size + 100, -1])
async def test_what_a_broken_store_left_hides_no_later_entry(tmp_path: Path, cut: int) -> None:
    """Wherever it broke, and whatever else broke behind it."""
    async with depot(tmp_path) as depots:
        for behind in (b"", entry(3)[:cut], entry(3)[:200] + entry(4)[:cut], entry(1), entry(5)[:cut] * 8):
            caps = await stored(depots, entry(1) + entry(2)[:cut] + behind + entry(6, b"newer") + entry(7)[:cut])
            found = await read_record(depots, locator(place(caps)))
            assert (found.number, found.open(KEY)) == (6, b"newer")


async def test_no_depot_has_a_record_searched_for_ever() -> None:
    """Each beginning says that much may follow."""
    data = entry(1) + entry(2)[: HEADER.size] * 10_000
    loads = []

    async def load(offset: int, length: int) -> bytes:
        loads.append(length)
        if offset + length > len(data):
            raise error_for(ErrorCode.WOULD_EXCEED_LIMIT)
        return data[offset : offset + length]

    assert (await read_log(load, SHARE)).number == 1
    assert len(loads) < 500


@pytest.mark.parametrize("data", [b"", b"IBP", b"x" * 500, entry()[:-1]])
async def test_no_record(tmp_path: Path, data: bytes) -> None:
    async with depot(tmp_path) as depots:
        caps = await stored(depots, data)
        with pytest.raises(DataError):
            await read_record(depots, locator(place(caps)))


async def test_any_place_will_do(tmp_path: Path) -> None:
    async with depot(tmp_path) as depots:
        good, bad = await stored(depots, entry()), await stored(depots, b"x" * 100)
        gone = await stored(depots, entry())
        await depots.client(Address("one", 1)).decr(gone.manage.wire_key)
        for others in ([place(bad)], [place(gone)], [place(good, "down")], [place(bad), place(gone)]):
            assert (await read_record(depots, locator(*others, place(good)))).number == 1
        with pytest.raises(ShareGone, match="revoked by its sender"):
            await read_record(depots, locator(place(gone)))
        with pytest.raises(ShareGone, match="has expired"):
            await read_record(depots, locator(place(gone), expires=int(time.time()) - 1))
        with pytest.raises(DepotUnreachable, match="no depot of the link answers"):
            await read_record(depots, locator(place(good, "down")))
        with pytest.raises(BadRecord):
            await read_record(depots, locator(place(bad), place(good, "down")))


async def test_a_copy_that_missed_an_extension_is_not_believed(tmp_path: Path) -> None:
    """Also where the depot that has it is the quickest, or the only one that answers."""
    past = replace(PUBLIC, expires=int(time.time()) - 5)
    async with depot(tmp_path / "depot") as local:
        stale = place(await stored(local, entry(1, public=past)))
        longer = await stored(local, entry(1, public=past) + entry(2))
        gone = await stored(local, entry())
        await local.client(Address("one", 1)).decr(gone.manage.wire_key)
        far = Far(local.socket)
        try:
            for places in ([stale, place(longer, "far")], [place(longer, "far"), stale], [stale, place(longer)]):
                assert (await read_record(far, locator(*places, expires=5))).number == 2
        finally:
            await far.aclose()
        for one in (stale, place(gone)):
            with pytest.raises(DepotUnreachable, match=r"has expired .*; 1 of the 2 .* may know better"):
                await read_record(local, locator(one, place(longer, "down"), expires=5))
        with pytest.raises(DepotUnreachable, match=r"was revoked .*; 1 of the 2"):
            await read_record(local, locator(place(gone), place(longer, "down")))
        assert (await read_record(local, locator(stale, place(gone), expires=5))).number == 1  # that is the end


async def test_the_newest_copy_counts_of_those_that_answer_about_as_soon(tmp_path: Path) -> None:
    async with depot(tmp_path / "depot") as local:
        old = place(await stored(local, entry(1)), "far")
        newer = await stored(local, entry(2))
        revoked = await stored(local, make_revocation(SIGNER, 2, PUBLIC))
        far = Far(local.socket)
        far.farther.late = 1.3 * far.far.late
        try:
            for places in ([old, place(newer, "farther")], [place(newer, "farther"), old]):
                assert (await read_record(far, locator(*places))).number == 2
            with pytest.raises(ShareGone, match="revoked"):
                await read_record(far, locator(old, place(revoked, "farther")))
            far.farther.late = 60.0
            with trio.fail_after(10):
                assert (await read_record(far, locator(old, place(newer, "farther")))).number == 1
        finally:
            await far.aclose()


async def test_a_revocation_in_place_of_the_record(tmp_path: Path) -> None:
    async with depot(tmp_path) as depots:
        caps = await stored(depots, make_revocation(SIGNER, 1, PUBLIC))
        with pytest.raises(ShareGone, match="revoked"):
            await read_record(depots, locator(place(caps)))


async def opened(depots: Depots, raw: bytes, secret: bytes = SECRET, passphrase: bool = False) -> object:
    caps = await stored(depots, raw)
    found = await read_record(depots, locator(place(caps)))
    link = Link(locator(place(caps)), Fragment(secret, passphrase=passphrase))
    return open_record(found, link, lambda wrapped: wrapped, lambda: "word")


async def test_opening(tmp_path: Path) -> None:
    content = replace(CONTENT, sender=SIGNED)
    async with depot(tmp_path) as depots:
        assert await opened(depots, entry(clear=to_json(content))) == content
        with pytest.raises(WrongKey, match="does not open"):
            await opened(depots, entry(clear=to_json(content)), bytes(32))
        with pytest.raises(BadRecord, match="for none"):
            await opened(depots, entry(clear=to_json(content)), passphrase=True)
        with pytest.raises(BadRecord, match="not theirs"):
            await opened(depots, entry(clear=to_json(replace(content, sender=Sender(SIGNED.key, bytes(64))))))
        with pytest.raises(ShareGone, match="has expired"):
            await opened(depots, entry(clear=to_json(content), public=replace(PUBLIC, expires=5)))
        hostile = to_json(content).replace(b'"report.pdf"', b'"../../x"')
        with pytest.raises(BadRecord, match="name that is none"):
            await opened(depots, entry(clear=hostile))


# --- the bytes


async def test_a_copy_that_lies_is_passed_over(tmp_path: Path) -> None:
    async with depot(tmp_path) as depots:
        whole = b"".join(seal(SLICE.form, SLICE.key, CLEAR))
        good = await stored(depots, b"before" + whole)
        wrong = await stored(depots, b"before" + whole[:60] + b"!" + whole[61:])
        short = await stored(depots, whole[:50])
        copies = [Copy(Address("one", 1), one.read.wire_key, base)
                  for one, base in ((wrong, 6), (short, 0), (good, 6))]  # fmt: skip
        down = Copy(Address("down", 1), good.read.wire_key, 6)
        content = replace(CONTENT, runs=(Run(10_000, (*copies, down)),))
        for turn in range(5):
            assert await fetch_part(depots, content, PART, turn) == CLEAR
        with pytest.raises(Unavailable, match="does not open"):
            await fetch_part(depots, replace(content, runs=(Run(10_000, (copies[0], down)),)), PART)
        written = []

        async def write(data: bytes) -> None:
            written.append(data)
            await trio.lowlevel.checkpoint()

        sparse = replace(PLAIN, size=3_000_000, parts=(replace(PART, start=2_000_000, stop=2_000_100),))
        await stream(depots, content, sparse, write, 3)
        assert b"".join(written) == bytes(2_000_000) + CLEAR + bytes(999_900)


async def test_what_has_another_hash_is_not_given_its_name(tmp_path: Path) -> None:
    async with depot(tmp_path / "depot") as depots:
        good = await stored(depots, b"".join(seal(SLICE.form, SLICE.key, CLEAR)))
        content = replace(CONTENT, runs=(Run(10_000, (Copy(Address("one", 1), good.read.wire_key),)),))
        with pytest.raises(DataError, match="SHA-256 differs"):
            await Receiver(depots, content, lambda *_: None, 2).receive(tmp_path / "f", overwrite=False, resume=True)
        assert not (tmp_path / "f").exists()
        right = replace(content, entries=(replace(PLAIN, sha256=None),))
        had = await Receiver(depots, right, lambda *_: None, 2).receive(tmp_path / "f", overwrite=False, resume=True)
        assert had == 100
        assert (tmp_path / "f").read_bytes() == CLEAR


@pytest.mark.parametrize("name", [".bashrc", "-rf", ".ssh", "\u202egpj.exe"])
def test_names_that_are_asked_about(name: str) -> None:
    with pytest.raises(UsageError, match="-o"):
        file_name(replace(CONTENT, name=name))


def test_who_is_asked_first() -> None:
    """Silent depots last, then as hinted, then who has the least to do, then in turns."""
    one, two, three = copies = [Copy(Address(host, 1), Key("r", "1")) for host in ("one", "two", "three")]
    depots = Depots()
    assert [best_first(depots, copies, turn)[0] for turn in range(4)] == [one, two, three, one]
    with depots.loading(one.depot), depots.loading(two.depot), depots.loading(two.depot):
        assert best_first(depots, copies, 0) == [three, one, two]
        depots.note(three.depot, DepotUnreachable("silence"))
        assert best_first(depots, copies, 2) == [one, two, three]
    assert best_first(depots, copies, 1) == [two, one, three]
    hinted = Depots([three.depot])
    with hinted.loading(three.depot):
        assert [best_first(hinted, copies, turn)[0] for turn in range(3)] == [three] * 3


class Late(DepotClient):
    late = 0.2

    async def load(self, key: Key, offset: int, length: int) -> bytearray:
        await trio.sleep(self.late)
        return await super().load(key, offset, length)


class Far(Local):
    """Of the depots called far and farther each answer takes a while."""

    def client(self, address: Address) -> DepotClient:
        return {"far": self.far, "farther": self.farther}.get(address.host) or super().client(address)

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self.far, self.farther = (Late(Address(path=str(socket))) for _ in range(2))

    async def aclose(self) -> None:
        await self.far.aclose()
        await self.farther.aclose()
        await super().aclose()


@pytest.mark.parametrize("grace", [0.5, 0.1], ids=["in time", "too late"])
async def test_who_has_begun_to_give_a_record_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr("ibpfs.exnode_store.sharing.reading._GRACE", grace)
    async with depot(tmp_path / "depot") as local:
        gone, there = await stored(local, entry()), await stored(local, entry())
        await local.client(Address("one", 1)).decr(gone.manage.wire_key)
        far = Far(local.socket)
        try:
            if grace > 0.2:  # though the whole takes three answers
                assert (await read_record(far, locator(place(gone), place(there, "far")))).number == 1
            else:
                with pytest.raises(DepotUnreachable, match="did not answer"):
                    await read_record(far, locator(place(gone), place(there, "far")))
        finally:
            await far.aclose()
