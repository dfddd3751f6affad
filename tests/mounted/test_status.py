"""What the commands tell scripts, and what flush and drop-cache promise."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from .running import BIN, kill_and_wait, run
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

KEYS = {"volume", "mountpoint", "pid", "pids", "dirty_bytes", "spool_bytes", "files", "used_bytes",
        "under_replicated_bytes", "earliest_lease_end", "depots"}  # fmt: skip


def make_tree(directory: Path) -> dict[str, bytes]:
    content = {f"{number:03}": os.urandom(1 + number * number * 40) for number in range(100)}
    content["large"] = os.urandom(9_000_000)
    for name, data in content.items():
        (directory / name).write_bytes(data)
    return content


def read_tree(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class TestStatus:
    @pytest.mark.parametrize("word", ["root", "mountpoint"])
    def test_keys_by_volume_and_by_mount_point(self, shared: Volume, word: str) -> None:
        found = json.loads(run("ibpfs", "status", "--json", getattr(shared, word)).stdout)
        assert found.keys() >= KEYS
        assert (found["volume"], found["mountpoint"]) == (str(shared.root), str(shared.mountpoint))
        assert found["pid"] in found["pids"]
        assert found["earliest_lease_end"] is None  # the embedded depot leases for good
        (depot,) = found["depots"]
        assert depot.keys() >= {"id", "address", "state", "free_bytes"}
        assert depot["state"] == "ok"

    def test_all_that_are_mounted(self, shared: Volume) -> None:
        found = json.loads(run("ibpfs", "status", "--json").stdout)
        assert str(shared.root) in [one["volume"] for one in found]
        assert f"{shared.root}: mounted on {shared.mountpoint} " in run("ibpfs", "status").stdout

    def test_figures_move(self, shared: Volume, place: Path) -> None:
        before = shared.status()
        (place / "f").write_bytes(b"x" * 500_000)
        during = shared.status()
        assert during["files"] == before["files"] + 1
        shared.flush()
        after = shared.status()
        assert after["dirty_bytes"] == 0
        assert after["used_bytes"] - before["used_bytes"] == pytest.approx(500_000, rel=0.001)  # sealed

    def test_leases_of_a_depot(self, volumes: MakeVolume) -> None:
        volume = volumes(depots=1)
        (volume / "f").write_bytes(b"x" * 1000)
        volume.flush()
        days = (volume.status()["earliest_lease_end"] - time.time()) / 86400
        assert 5 < days < 31
        (segment,) = volume.stat("f")["segments"]
        (replica,) = segment["replicas"]
        assert replica["depot"] == volume.depots[0].address
        assert 5 < (replica["lease_end"] - time.time()) / 86400 < 31

    def test_of_a_volume_that_is_not_mounted(self, volumes: MakeVolume) -> None:
        volume = volumes(mount=False)
        found = volume.status()
        assert found.keys() >= KEYS
        assert found["mountpoint"] is None

    def test_for_a_person(self, shared: Volume) -> None:
        said = run("ibpfs", "status", shared.mountpoint).stdout
        assert str(shared.mountpoint) in said
        assert "\x1b" not in said

    def test_stat_for_a_person_and_a_script(self, shared: Volume, place: Path) -> None:
        (place / "f").write_bytes(b"x" * 100_000)
        shared.flush()
        found = shared.stat(f"{place.name}/f")
        assert found["size"] == 100_000
        assert found["slices"] == 1
        assert len(found["segments"]) == 1
        assert run("ibpfs", "stat", place / "f").stdout.startswith(str(place / "f"))

    def test_versions(self) -> None:
        for name in ("ibpfs", "mkfs.ibpfs", "mount.ibpfs", "umount.ibpfs", "fsck.ibpfs", "ibpfs-depot"):
            assert run(name, "--version").stdout.split()[0] == name
            assert "Usage" in run(name, "--help").stdout
            assert run(name, "-h").stdout == run(name, "--help").stdout

    def test_depots(self, shared: Volume) -> None:
        (depot,) = json.loads(run("ibpfs", "depots", "--json", shared.mountpoint).stdout)
        assert depot["state"] == "ok"

    def test_for_another_user(self, shared: Volume) -> None:
        words = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", BIN / "ibpfs", "status")
        done = run(*words, shared.mountpoint, code=1)
        assert done.stderr.count("\n") == 1


def test_everything_is_on_the_depot_after_a_flush(volume: Volume) -> None:
    content = make_tree(volume.mountpoint)
    volume.flush()
    volume.kill()
    for name in ("spool", "cache"):
        shutil.rmtree(volume.root / name)
    volume.mount()
    assert read_tree(volume.mountpoint) == content


def test_a_flush_in_a_script_brings_little_with_it(shared: Volume) -> None:
    said = run("python", "-X", "importtime", BIN / "ibpfs", "flush", shared.mountpoint).stderr
    assert "ibpfs.control" in said
    assert not {"click", "dataclasses", "ibpfs.config"} & set(said.split())


def test_fsync_is_as_good_as_a_flush(volume: Volume) -> None:
    with (volume / "f").open("wb") as file:
        file.write(b"precious" * 100_000)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(volume.mountpoint, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    volume.kill()
    for name in ("spool", "cache"):
        shutil.rmtree(volume.root / name)
    volume.mount()
    assert (volume / "f").read_bytes() == b"precious" * 100_000


def test_every_read_comes_from_the_depot_after_drop_cache(volumes: MakeVolume) -> None:
    volume = volumes(depots=1)
    volume.expect("does not answer|cannot be read|can be read|nobody listens")
    content = make_tree(volume.mountpoint)
    volume.drop_cache()
    assert not [path for path in (volume.root / "cache").rglob("*") if path.is_file()]
    volume.depots[0].kill()
    began = time.monotonic()
    for name in content:
        if content[name]:
            with pytest.raises(OSError) as raised:  # noqa: PT011
                (volume / name).read_bytes()
            assert raised.value.errno == errno.EIO
    assert time.monotonic() - began < 60
    volume.depots[0].start()
    for _ in range(100):
        if volume.status()["depots"][0]["state"] == "ok":
            break
        time.sleep(0.1)
    assert read_tree(volume.mountpoint) == content


def test_a_cache_deleted_while_unmounted_costs_nothing(volume: Volume) -> None:
    content = make_tree(volume.mountpoint)
    volume.umount()
    shutil.rmtree(volume.root / "cache")
    volume.mount()
    assert read_tree(volume.mountpoint) == content


def test_a_restart_finds_its_cache(volumes: MakeVolume) -> None:
    volume = volumes(depots=1)
    volume.expect("does not answer")
    content = make_tree(volume.mountpoint)
    volume.umount()
    volume.depots[0].stop()
    volume.mount()
    assert read_tree(volume.mountpoint) == content


def test_a_changed_byte_in_the_cache_is_not_shown(volume: Volume) -> None:
    volume.expect("cache")
    content = make_tree(volume.mountpoint)
    volume.umount()
    for path in (volume.root / "cache").rglob("*"):
        if path.is_file():
            damage(path)
    volume.mount()
    assert read_tree(volume.mountpoint) == content


def test_a_changed_byte_on_the_depot_is_an_error_that_names_it(volume: Volume) -> None:
    volume.expect("allocation|slice|frame|cannot be read")
    (volume / "f").write_bytes(os.urandom(1_000_000))
    address = volume.status()["depots"][0]["address"]
    volume.umount()
    volume.empty_cache()
    kill_and_wait(volume.embedded_depot())
    for path in (volume.root / "depot" / "allocations").rglob("*"):
        if path.is_file() and path.stat().st_size > 500_000:
            damage(path)
    volume.mount()
    with pytest.raises(OSError) as raised:  # noqa: PT011
        (volume / "f").read_bytes()
    assert raised.value.errno == errno.EIO
    (line, *_) = [line for line in volume.log().splitlines() if " WARNING " in line and "allocation" in line]
    assert address in line or volume.status()["depots"][0]["address"] in line


def test_a_changed_byte_on_one_of_two_depots_is_nothing(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=2)
    volume.expect("allocation|in the local cache are damaged")
    content = make_tree(volume.mountpoint)
    volume.umount()
    volume.empty_cache()
    for path in volume.depots[0].allocations():
        damage(path)
    volume.mount()
    assert read_tree(volume.mountpoint) == content


def damage(path: Path) -> None:
    """Flip a bit of every 4 KiB behind the header of an allocation's file."""
    with path.open("r+b") as file:
        for at in range(4096 + 100, path.stat().st_size, 4096):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
