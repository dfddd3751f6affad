"""A volume and the certificates of its depots: pinned at mkfs, refused when changed, missed where the way is open."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ibpfs.config import VolumePaths, read_key_file
from ibpfs.depot.pinning import fingerprints_of
from ibpfs.depot.server.certificate import fingerprint
from ibpfs.depot.server.depot import open_depot
from ibpfs.depot.server.settings import Settings
from ibpfs.errors import UsageError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.creation import create_volume
from ibpfs.exnode_store.database import Database
from ibpfs.mount import OpenVolume, open_volume


@asynccontextmanager
async def a_depot(store: Path, **options: bool) -> AsyncIterator[str]:
    """A depot on a TCP port that stays its own; its address."""
    store.mkdir(exist_ok=True)
    settings = Settings(store=store, listen=(("127.0.0.1", 0),), capacity=1 << 28, permanent=True, max_lease=None,
                        **options)  # fmt: skip
    with open_depot(settings, trio.current_time) as depot:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(depot.serve)
            yield depot.address
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(paths: VolumePaths) -> AsyncIterator[OpenVolume]:
    async with open_volume(paths, read_key_file(paths.key)) as volume:
        yield volume


def pins(paths: VolumePaths) -> list[tuple[str, bytes | None]]:
    with Database(paths.store) as database:
        return [(str(address), pin) for address, pin in database.rows("SELECT address, fingerprint FROM depots")]


async def make(paths: VolumePaths, *depots: str) -> None:
    create_volume(paths, depots=depots, fingerprints=await fingerprints_of(depots))


async def test_a_volume_uses_tls_and_knows_its_depot_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = VolumePaths(tmp_path / "volume")
    async with a_depot(tmp_path / "depot") as address:
        await make(paths, address)
        assert pins(paths) == [(address, fingerprint(tmp_path / "depot"))]
        async with opened(paths) as volume:
            assert await volume.parts.depots.wait_for_any(10)
            ino = volume.names.create(1, b"file", NewInode(0o100600, 0, 0)).ino
            await volume.parts.files.write(ino, 0, bytes(range(256)) * 4096)
            await volume.services.commands()["flush"]({}, lambda *_: None)
            await volume.services.commands()["drop-cache"]({}, lambda *_: None)
            assert await volume.parts.files.read(ino, 300_000, 10) == bytes(range(224, 234))
            (listed,) = await volume.services.commands()["depots"]({}, lambda *_: None)
            assert (listed["tls"], listed["state"]) == (True, "ok")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (tmp_path / "depot" / "certificate.pem").unlink()
    async with a_depot(tmp_path / "depot") as again, opened(paths) as volume:
        assert again == address
        (depot,) = volume.parts.depots
        with trio.fail_after(10):
            while not depot.trouble:
                await depot.turned.wait()
        assert "refused: its certificate has changed" in depot.trouble
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "refused: its certificate has changed" in warning.getMessage()
    assert "\n" not in warning.getMessage()


async def test_pinned_later_and_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A depot that first had no TLS, and then changes its certificate."""
    paths = VolumePaths(tmp_path / "volume")
    async with a_depot(tmp_path / "depot", tls=False) as address:
        await make(paths, address)
        async with opened(paths) as volume:
            with pytest.raises(UsageError, match="offers no TLS"):
                await volume.services.commands()["depots-pin"]({"id": 1}, lambda *_: None)
            with pytest.raises(UsageError, match="no depot 7"):
                await volume.services.commands()["depots-pin"]({"id": 7}, lambda *_: None)
    for _ in range(2):
        async with a_depot(tmp_path / "depot"), opened(paths) as volume:
            told = await volume.services.commands()["depots-pin"]({"id": 1}, lambda *_: None)
            assert told["fingerprint"] == fingerprint(tmp_path / "depot").hex()
            assert await volume.parts.depots.wait_for_any(10)
            await volume.parts.depots.get(1).look()
        assert pins(paths) == [(address, fingerprint(tmp_path / "depot"))]
        (tmp_path / "depot" / "certificate.pem").unlink()
    caplog.clear()  # between the mount and the pinning the changed certificate was refused


async def test_a_pinned_depot_that_drops_tls_is_refused(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    async with a_depot(tmp_path / "depot") as address:
        await make(paths, address)
    async with a_depot(tmp_path / "depot", tls=False), opened(paths) as volume:
        (depot,) = volume.parts.depots
        with trio.fail_after(10):
            while not depot.trouble:
                await depot.turned.wait()
        assert "does not speak TLS, although it is known with TLS; refused" in depot.trouble


async def test_a_depot_that_is_added_is_pinned(tmp_path: Path) -> None:
    paths = VolumePaths(tmp_path / "volume")
    async with a_depot(tmp_path / "one", tls=False) as plain, a_depot(tmp_path / "two") as sealed:
        await make(paths, plain)
        secure = sealed.replace("ibp:", "ibps:")
        async with opened(paths) as volume:
            add = volume.services.commands()["depots-add"]
            assert (await add({"address": secure, "tls": False}, lambda *_: None))["tls"]
            with pytest.raises(UsageError, match="already"):
                await add({"address": sealed}, lambda *_: None)
    assert pins(paths) == [(plain, None), (secure, fingerprint(tmp_path / "two"))]


async def test_one_warning_per_mount_of_depots_without_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = VolumePaths(tmp_path / "volume")
    create_volume(paths, depots=["ibp://192.0.2.1:6714", "ibp://192.0.2.2:6714", "ibp://127.0.0.1:1"])
    async with opened(paths):
        await trio.lowlevel.checkpoint()
    (text,) = [record.getMessage() for record in caplog.records if "without TLS" in record.getMessage()]
    assert text.endswith("ibp://192.0.2.1:6714, ibp://192.0.2.2:6714")


def test_a_depot_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        create_volume(VolumePaths(tmp_path / "v"), depots=["ibp://a:1", "ibps://a:1"])
