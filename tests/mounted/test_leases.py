"""Leases of seconds that a mount, or `ibpfs warm` alone, outlives; repair and draining of what is in use."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.depot import unwilling

from .running import run, until
from .test_status import make_tree, read_tree
from .volumes import Depot, MakeDepot, MakeVolume, Volume

pytestmark = pytest.mark.mounted

LEASE = 2
CONTENT = {"small": b"x", "large": b"so it was written" * 100_000}


def fill(volume: Volume) -> None:
    for name, data in CONTENT.items():
        (volume / name).write_bytes(data)
    volume.flush()


def warm(volume: Volume, *words: str, code: int | None = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("ibpfs", "warm", "--json", volume.root, *words, code=code).stdout)
    return found


def role_of(volume: Volume, depot: Depot) -> str:
    found = json.loads(run("ibpfs", "depots", "--json", volume.root).stdout)
    (role,) = [one["role"] for one in found if one["address"] == depot.address]
    return str(role)


def test_ten_leases(depots: MakeDepot, volumes: MakeVolume) -> None:
    places = [word for _ in range(2) for word in ("--depot", depots("--max-lease", f"{LEASE}s").address)]
    mounted, warmed = (volumes(*places, "--copies", "2") for _ in range(2))
    fill(mounted)
    fill(warmed)
    warmed.umount()
    renewed, end = 0, time.monotonic() + 10 * LEASE
    while time.monotonic() < end:
        found = warm(warmed)
        assert (found["not_renewed"], found["at_risk_bytes"]) == (0, 0)
        renewed += found["renewed"]
        time.sleep(LEASE / 4)
    assert renewed >= 2 * 8
    warmed.empty_cache()
    assert warm(warmed, "--all")["renewed"] >= 2
    warmed.mount()
    assert read_tree(warmed.mountpoint) == CONTENT
    assert warm(mounted)["under_replicated_bytes"] == 0
    mounted.drop_cache()
    assert read_tree(mounted.mountpoint) == CONTENT


def test_what_a_depot_does_not_renew_moves_in_time(depots: MakeDepot, volumes: MakeVolume) -> None:
    refusing = depots("--max-lease", "3s", program=(sys.executable, unwilling.__file__))
    others = [depots("--max-lease", "3s") for _ in range(2)]
    places = [word for depot in (refusing, *others) for word in ("--depot", depot.address)]
    mounted, warmed = (volumes(*places, "--copies", "2", "--min-copies", "2") for _ in range(2))
    for volume in (mounted, warmed):
        volume.expect("not renewed|is lost|CAP_NOT_FOUND")  # a copy whose lease has just ended may be asked for
        before, number, until = len(refusing.allocations()), 0, time.monotonic() + 60
        while number < 8 or len(refusing.allocations()) <= before:  # each depot has some
            assert time.monotonic() < until
            (volume / f"{number % 8}").write_bytes(CONTENT["large"])
            volume.flush()
            number += 1
    warmed.umount()
    (refusing.store / unwilling.FLAG).touch()
    warm(warmed, code=None)  # what it took so far, on a busy machine, is not the subject
    end = time.monotonic() + 12
    while time.monotonic() < end:
        assert warm(warmed, code=None)["at_risk_bytes"] == 0  # it says that some was not renewed
        assert mounted.status()["at_risk_bytes"] == 0
        time.sleep(0.2)
    refusing.kill()
    warmed.empty_cache()
    warmed.mount()
    for volume in (mounted, warmed):
        volume.expect("does not answer")
        volume.drop_cache()
        assert read_tree(volume.mountpoint) == {f"{number}": CONTENT["large"] for number in range(8)}
        assert volume.status()["under_replicated_bytes"] == 0


def test_what_cannot_be_renewed_is_one_line(volumes: MakeVolume, depots: MakeDepot) -> None:
    depot = depots("--max-lease", "1s")
    volume = volumes("--depot", depot.address)
    volume.expect("does not answer|not renewed")
    (volume / "f").write_bytes(b"x")
    volume.umount()
    depot.stop()
    time.sleep(1)
    done = run("ibpfs", "warm", volume.root, code=1)
    assert done.stderr.count("\n") == 1
    assert "3 leases due and not renewed" in done.stderr  # of the checkpoint and its root, too
    assert "at risk" in done.stderr


def test_repair_of_a_mounted_volume_whose_depot_was_emptied(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=2)
    volume.expect("is lost|depot|allocation")
    fill(volume)
    first, second = volume.depots
    first.kill()
    shutil.rmtree(first.store / "allocations")
    first.start()
    found = json.loads(run("ibpfs", "repair", "--json", volume.mountpoint).stdout)
    assert found["bad"] >= 1
    assert (found["under_replicated_bytes"], found["at_risk_bytes"], found["not_verified"]) == (0, 0, 0)
    second.kill()
    volume.empty_cache()
    volume.kill()
    volume.mount()
    assert read_tree(volume.mountpoint) == CONTENT


def test_what_no_reader_has_met_is_mended(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", "--plain", depots=2)
    volume.expect("depot|allocation")
    fill(volume)
    volume.remount()  # closes the segment; what is still appended to is not verified yet
    assert "every copy within 30 days; 0% verified" in run("ibpfs", "status", volume.root).stdout
    said = run("ibpfs", "repair", "--every", "2s", volume.mountpoint).stdout
    assert said.startswith(f"{volume.mountpoint}: every copy within 2 seconds")
    (allocation, *_) = volume.depots[0].allocations()
    raw = allocation.read_bytes()
    with allocation.open("r+b") as file:
        file.seek(raw.index(b"so it was"))
        file.write(b"or it was")
    until(lambda: b"or it was" not in b"".join(map(Path.read_bytes, volume.depots[0].allocations())), 60, "the mending")
    until(lambda: volume.status()["under_replicated_bytes"] == 0)
    volume.umount()
    assert run("ibpfs", "repair", "--every", "never", volume.root).stdout.endswith("not verified in the background\n")
    assert volume.status()["scrub"]["period"] is None
    refused = run("ibpfs", "repair", "--every", "soon", volume.root, code=2)
    assert "'soon' is not a duration" in refused.stderr
    assert "clean" in volume.fsck("--data", "-n").stdout


def test_a_drain_goes_on_after_the_mount_was_killed(volumes: MakeVolume) -> None:
    volume = volumes("--copies", "2", depots=3)
    volume.expect("does not answer|depot|allocation")
    content = make_tree(volume.mountpoint)
    volume.flush()
    down, stays, first = sorted(volume.depots, key=lambda depot: len(depot.allocations()))
    down.kill()
    refused = run("ibpfs", "depots", "drain", volume.mountpoint, first.address, code=1)
    assert "cannot be moved off it now" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert first.allocations()
    volume.kill()
    down.start()
    volume.mount()
    assert role_of(volume, first) == "draining"
    until(lambda: not first.allocations(), 30, "the end of the drain")
    said = run("ibpfs", "depots", "drain", volume.mountpoint, first.address).stdout
    said += run("ibpfs", "depots", "remove", volume.mountpoint, first.address).stdout
    assert said.splitlines() == [
        f"{first.address}: nothing of this volume's own is left there",
        f"{first.address}: is no depot of this volume any more",
    ]
    first.kill()
    assert len(volume.status()["depots"]) == 2
    volume.drop_cache()
    assert read_tree(volume.mountpoint) == content
    refused = run("ibpfs", "depots", "drain", volume.root, stays.address, code=2)
    assert "without it there are 1 depots for 2 copies" in refused.stderr
    assert refused.stderr.count("\n") == 1
