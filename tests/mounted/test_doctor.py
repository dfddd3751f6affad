"""Faults, each made for real, as `ibpfs doctor` tells them: cause, object and action in one line."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths, load_config, save_config
from ibpfs.exnode_store.findings import Finding
from ibpfs_tools.doctor import describe
from tests.depot import unwilling

from .running import run, until
from .volumes import MakeDepot, MakeVolume, Volume

pytestmark = pytest.mark.mounted

SIZE = 100_000


def doctor(*words: object, env: dict[str, str] | None = None, code: int | None = 1) -> dict[str, Finding]:
    """What it finds, by code; each of it is a line of its own."""
    found = [Finding(**one) for one in json.loads(run("ibpfs", "doctor", "--json", *words, env=env, code=code).stdout)]
    lines = describe(found)
    assert len(lines) == len(found) + (not found)
    assert not any("\n" in line for line in lines)
    assert all(one.place and one.cause and one.action for one in found)
    print("\n".join(lines))
    return {one.code: one for one in found}


def in_namespace(script: str, *words: object) -> dict[str, Finding]:
    """The same in a mount namespace in which `script` has been run first."""
    command = f"mount --make-rprivate / && {script} && exec {Path(sys.executable).parent}/ibpfs doctor --json \"$@\""
    done = run("unshare", "-m", "sh", "-c", command, "sh", *words, code=1)
    return {one["code"]: Finding(**one) for one in json.loads(done.stdout)}


def filled(volume: Volume) -> Volume:
    (volume / "file").write_bytes(os.urandom(SIZE))
    volume.flush()
    return volume


@pytest.mark.parametrize("depots", [0, 2])
def test_nothing_is_wrong(volumes: MakeVolume, depots: int) -> None:
    volume = filled(volumes(depots=depots))
    assert run("ibpfs", "doctor", volume.mountpoint).stdout == "nothing is wrong\n"
    # Others may have volumes mounted here, too.
    assert not any(str(volume.base) in one.place for one in doctor(code=None).values())
    volume.umount()
    assert run("ibpfs", "doctor", volume.root).stdout == "nothing is wrong\n"


@pytest.mark.parametrize("mounted", [True, False])
def test_depots_that_are_down_or_silent(volumes: MakeVolume, mounted: bool) -> None:
    volume = filled(volumes("--copies", "3", depots=3))
    volume.expect("does not answer")
    if not mounted:
        volume.umount()
    down, silent, _ = volume.depots
    down.kill()
    os.kill(silent.pid, signal.SIGSTOP)
    try:
        found = doctor(volume.root)
    finally:
        os.kill(silent.pid, signal.SIGCONT)
    assert found["depot-down"].place == down.address
    assert "nobody listens there" in found["depot-down"].cause
    assert found["depot-silent"].place == silent.address
    assert "answers nothing" in found["depot-silent"].cause


def test_a_depot_that_does_not_renew(depots: MakeDepot, volumes: MakeVolume) -> None:
    depot = depots("--max-lease", "3s", program=(sys.executable, unwilling.__file__))
    volume = filled(volumes("--depot", depot.address))
    volume.expect("not renewed")
    (depot.store / unwilling.FLAG).touch()
    until(lambda: "renewal-refused" in doctor(volume.root, code=None), 20)
    assert doctor(volume.root)["renewal-refused"].place == depot.address


def test_leases_that_have_ended(depots: MakeDepot, volumes: MakeVolume) -> None:
    depot = depots("--max-lease", "1s")
    volume = filled(volumes("--depot", depot.address))
    volume.expect("does not answer|not renewed")
    depot.kill()
    time.sleep(1.5)
    found = doctor(volume.mountpoint)
    assert found["lease-ended"].place == depot.address
    assert "1 of its leases" in found["lease-ended"].cause
    assert found["depot-down"].place == depot.address
    assert "at-risk" in found


def test_a_depot_that_is_full(depots: MakeDepot, volumes: MakeVolume) -> None:
    depot = depots("--capacity", "18M")
    volume = volumes("--depot", depot.address)
    (volume / "file").write_bytes(os.urandom(4 << 20))
    volume.flush()
    assert doctor(volume.root)["depot-full"].place == depot.address


def test_the_wrong_key_and_none(volumes: MakeVolume) -> None:
    volume, other = filled(volumes()), volumes(mount=False)
    key = volume.root / "volume.key"
    saved = key.read_bytes()
    shutil.copy(other.root / "volume.key", key)
    assert doctor(volume.root)["wrong-key"].place == str(key)
    volume.umount()
    assert doctor(volume.root)["wrong-key"].place == str(key)
    key.unlink()
    assert doctor(volume.root)["no-key"].place == str(key)
    key.write_bytes(saved)
    key.chmod(0o640)
    assert "mode 0640" in doctor(volume.root)["open-key"].cause
    key.chmod(0o600)
    assert "open-key" not in doctor(volume.root, code=None)


def test_a_full_cache_disk(volumes: MakeVolume, small_disk: Path) -> None:
    volume = filled(volumes(options=f"cache_dir={small_disk}"))
    with (small_disk / "others'").open("wb") as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(65536))
            file.flush()
    found = doctor(volume.mountpoint)
    assert found["cache-disk-full"].place.startswith(str(small_disk))
    volume.umount()


def test_a_full_disk(volumes: MakeVolume, directory: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", directory)
    try:
        run("mkfs.ibpfs", directory / "volume")
        assert doctor(directory / "volume")["disk-full"].place == str(directory / "volume")
        run("flock", directory / "volume" / "run" / "lock", "true")
        until(lambda: not any((directory / "volume" / "depot").glob("*.sock")), 30)
    finally:
        run("umount", "-l", directory)


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_is_off_by_a_day(depots: MakeDepot, volumes: MakeVolume, directory: Path, days: int) -> None:
    depot = depots("--max-lease", "10d")
    volume = filled(volumes("--depot", depot.address))
    volume.umount()
    (directory / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + {days} * 86400\n"
    )
    found = doctor(volume.root, env={"PYTHONPATH": str(directory)})
    side = "ahead of" if days > 0 else "behind"
    assert f"clock is 1.0 days {side} the one" in found["clock"].cause
    assert "lease-ended" not in found
    assert doctor(volume.root, code=None).get("at-risk") is None


def test_a_damaged_database(volume: Volume) -> None:
    filled(volume)
    volume.umount()
    path = volume.root / "exnode_store.sqlite"
    saved = path.read_bytes()
    raw = bytearray(saved)
    for page in range(8192, len(raw), 4096):
        raw[page : page + 16] = b"\xff" * 16
    path.write_bytes(raw)
    assert doctor(volume.root)["damaged-database"].place == str(path)
    path.unlink()
    assert "ibpfs recover" in doctor(volume.root)["damaged-database"].action
    path.write_bytes(saved)


def test_a_damaged_volume_and_one_of_a_later_release(volume: Volume) -> None:
    volume.umount()
    paths = VolumePaths(volume.root)
    saved = paths.properties.read_text()
    paths.properties.write_text(saved.replace("plain = false", "plain = true"))
    assert doctor(volume.root)["damaged-volume"].place == str(paths.properties)
    paths.properties.write_text(saved)
    config = load_config(paths)
    config.format = 2
    save_config(paths, config)
    assert "format 2 is not known" in doctor(volume.root)["unknown-format"].cause
    paths.properties.write_text(saved)


def test_a_stale_mount_point(volume: Volume) -> None:
    volume.kill()
    assert doctor()["stale-mount"].place == str(volume.mountpoint)
    volume.mount()
    assert "stale-mount" not in doctor(code=None)


def test_no_fuse(as_root: None) -> None:
    script = (
        "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9"
        " && mknod -m 666 /dev/random c 1 8"
    )
    found = in_namespace(script)
    assert found["no-fuse"].place == "/dev/fuse"
    assert found["no-fuse"].action == "modprobe fuse"


def test_an_unknown_setting(as_root: None, volume: Volume, directory: Path) -> None:
    (directory / "fstab").write_text(f"{volume.root} {volume.mountpoint} ibpfs cache_siez=1G,nofail 0 0\n")
    found = in_namespace(f"mount --bind {directory}/fstab /etc/fstab", volume.root)
    assert str(volume.mountpoint) in found["unknown-setting"].place
    assert "cache_siez" in found["unknown-setting"].cause


def test_what_waits_in_the_spool(volumes: MakeVolume) -> None:
    volume = filled(volumes(depots=1))
    volume.expect("does not answer|wait in the spool")
    volume.depots[0].kill()
    (volume / "more").write_bytes(os.urandom(SIZE))
    until(lambda: "spool-waits" in doctor(volume.mountpoint), 30)
    volume.kill()
    run("umount", "-l", volume.mountpoint)
    long_ago = time.time() - 7200
    for path in volume.spool_files():
        os.utime(path, (long_ago, long_ago))
    assert doctor(volume.root)["spool-waits"].place == str(volume.root / "spool")
    volume.depots[0].start()
    volume.mount()


def test_a_copy_that_is_bad(volumes: MakeVolume) -> None:
    volume = filled(volumes("--copies", "2", "--plain", depots=2))
    volume.expect("depot|allocation|segment")
    volume.umount()
    for depot in volume.depots:
        (path,) = depot.allocations()
        raw = bytearray(path.read_bytes())
        raw[-20_000] ^= 1
        path.write_bytes(raw)
    run("ibpfs", "repair", volume.root, code=1)
    found = doctor(volume.root)
    assert "2 copies are lost or were found to be bad" in found["bad-copies"].cause
    assert "at-risk" in found
