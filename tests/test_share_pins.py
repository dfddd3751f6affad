"""Links of a volume on depots with TLS: their records say by which certificates the depots are known, and go on to."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths
from ibpfs.depot.address import Address
from ibpfs.depot.server.certificate import fingerprint
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.lors.work import connected
from ibpfs.exnode_store.sharing.links import Link
from ibpfs.exnode_store.sharing.reading import read_record
from ibpfs.exnode_store.sharing.record_log import LogEntry
from ibpfs.mount import OpenVolume

from .test_pinned_depots import a_depot, make, opened


async def shared(volume: OpenVolume, near: str | None = None) -> str:
    assert await volume.parts.depots.wait_for_any(10)
    ino = volume.names.create(1, b"file", NewInode(0o100600, 0, 0)).ino
    await volume.parts.files.write(ino, 0, bytes(range(256)) * 100)
    request = {"ino": ino, "path": "/file", "name": "file", "seconds": 3600, "copy_limit": 10**6, "hashes": False,
               "for_browsers": True, "near": near}  # fmt: skip
    found = await volume.parts.sharing.commands()["share"](request, lambda *_: None)
    return str(found["link"])


async def record_of(link: str) -> LogEntry:
    async with connected() as depots:
        return await read_record(depots, Link.parse(link).locator)


async def test_pins_are_told_and_told_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths, store = VolumePaths(tmp_path / "volume"), tmp_path / "depot"
    async with a_depot(store) as address, a_depot(tmp_path / "plain", tls=False) as plain:
        secure = replace(Address.parse(address), secure=True)
        await make(paths, address, plain)
        async with opened(paths) as volume:
            link = await shared(volume)
            await volume.parts.depots.wait_for_all(10)
            found = await record_of(link)
            assert (found.number, found.public.pins) == (1, {secure: fingerprint(store)})
    (store / "certificate.pem").unlink()
    async with a_depot(store), a_depot(tmp_path / "plain", tls=False), opened(paths) as volume:
        pin = volume.services.commands()["depots-pin"]
        await pin({"id": 1}, lambda *_: None)
        await volume.parts.depots.get(1).look()
        await volume.parts.depots.get(2).look()
        with trio.fail_after(30):
            while (found := await record_of(link)).number == 1:
                await volume.parts.sharing._keeper.tend()
        assert found.public.pins == {secure: fingerprint(store)}
        (name,) = volume.parts.sharing._shares.names()
        assert volume.parts.sharing._shares.get(name).pins == found.public.pins
        await volume.parts.sharing._keeper.tend()
        assert (await record_of(link)).number == found.number
    caplog.clear()  # between the mount and the pinning the changed certificate was refused


async def test_a_depot_of_others_is_known_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that a copy was made on: with another certificate it hears nothing, and the record says what it said."""
    paths, store = VolumePaths(tmp_path / "volume"), tmp_path / "near"
    async with a_depot(tmp_path / "depot") as address:
        async with a_depot(store) as text:
            near = replace(Address.parse(text), secure=True)
            await make(paths, address)
            async with opened(paths) as volume:
                link = await shared(volume, near=str(near))
                found = await record_of(link)
                assert found.public.pins[near] == (pin := fingerprint(store))
        (store / "certificate.pem").unlink()
        async with a_depot(store), opened(paths) as volume:
            assert await volume.parts.depots.wait_for_any(10)
            await volume.parts.depots.get(1).look()
            sharing = volume.parts.sharing
            await sharing._keeper.tend()
            assert (await record_of(link)).public.pins[near] == pin
            (name,) = sharing._shares.names()
            (gone,) = await sharing.commands()["share-revoke"]({"ids": [name]}, lambda *_: None)
            assert "its certificate has changed" in str(gone["left"])
            assert str(near) in str(gone["left"])
    caplog.clear()
