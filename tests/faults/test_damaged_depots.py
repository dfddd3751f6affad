"""Depots that give back something else than was stored: always noticed, mended from another copy, never wrong bytes.

IBPFS_SEED sets the seed (fresh, printed).
"""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.running import run, until
from tests.mounted.volumes import Depot, MakeVolume, Volume

from .promises import ALLOCATION_HEADER

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("IBPFS_SEED", str(random.SystemRandom().randrange(1 << 32))))
Harm = Callable[[Depot, random.Random], None]


def filled(depot: Depot) -> list[Path]:
    return sorted(path for path in depot.allocations() if path.stat().st_size > ALLOCATION_HEADER)


def flip(depot: Depot, dice: random.Random) -> None:
    """Some bits in each allocation."""
    for path in filled(depot):
        raw = bytearray(path.read_bytes())
        for _ in range(3):
            raw[dice.randrange(ALLOCATION_HEADER, len(raw))] ^= 1 << dice.randrange(8)
        path.write_bytes(raw)


def swap(depot: Depot, dice: random.Random) -> None:
    """The bytes of allocations, each for those of another one."""
    paths = filled(depot)
    bodies = [path.read_bytes()[ALLOCATION_HEADER:] for path in paths]
    assert len(paths) > 1
    for path, body in zip(paths, bodies[1:] + bodies[:1], strict=True):
        with path.open("r+b") as file:
            file.seek(ALLOCATION_HEADER)
            file.write(body)


def truncate(depot: Depot, dice: random.Random) -> None:
    """Each allocation's file, somewhere."""
    for path in filled(depot):
        os.truncate(path, dice.randrange(ALLOCATION_HEADER, path.stat().st_size))


def exchange(depot: Depot, dice: random.Random) -> None:
    """Whole files, header and all, each under the name of another one."""
    paths = filled(depot)
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def write(volume: Volume, dice: random.Random, names: range) -> dict[str, bytes]:
    made = {str(number): dice.randbytes(dice.randrange(1, 200_000)) for number in names}
    for name, data in made.items():
        (volume / name).write_bytes(data)
    volume.flush()
    return made


def look(volume: Volume, content: dict[str, bytes]) -> int:
    """Read everything from the depots: right bytes or EIO; returns how many could not be read."""
    volume.drop_cache()
    failed = 0
    for name, data in content.items():
        found = bytes_or_error(volume / name)
        assert found in (data, errno.EIO), f"{name}: not what was written"
        failed += found == errno.EIO
    return failed


def bytes_or_error(path: Path) -> bytes | int | None:
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno


def stopped(depots: list[Depot], harm: Callable[[Depot], None]) -> None:
    for depot in depots:
        depot.kill()
        harm(depot)
        depot.start()


def are_back(volume: Volume) -> bool:
    return all(depot["state"] == "ok" for depot in volume.status()["depots"])


@pytest.mark.parametrize(
    ("harm", "plain"), [(flip, False), (flip, True), (swap, False), (swap, True), (truncate, False), (exchange, False)]
)
def test_what_one_depot_damages_comes_from_the_other_and_is_mended(
    volumes: MakeVolume, harm: Harm, plain: bool
) -> None:
    print(f"seed {SEED}: IBPFS_SEED={SEED}")
    dice = random.Random(SEED)
    volume = volumes(*(["--plain"] if plain else []), "--copies", "2", "--min-copies", "2", depots=2)
    volume.expect("depot|allocation|segment|EIO")
    content = write(volume, dice, range(6))
    volume.remount()  # so that there are two segments
    content |= write(volume, dice, range(6, 12))
    first, second = volume.depots
    stopped([first], lambda depot: harm(depot, dice))
    until(lambda: are_back(volume))
    assert look(volume, content) == 0
    run("ibpfs", "repair", volume.root)
    second.kill()
    assert look(volume, content) == 0, "not everything was mended"
    second.start()
    until(lambda: are_back(volume))
    stopped([first, second], lambda depot: harm(depot, dice))
    until(lambda: are_back(volume))
    failed = look(volume, content)
    assert failed or harm in (flip, truncate)  # what one has sound, the other need not
    print(f"{failed} of {len(content)} files could not be read with both depots damaged")


def test_a_depot_of_yesterday(volumes: MakeVolume, directory: Path) -> None:
    print(f"seed {SEED}: IBPFS_SEED={SEED}")
    dice = random.Random(SEED)
    volume = volumes("--copies", "2", "--min-copies", "2", depots=2)
    volume.expect("depot|allocation|segment|EIO")
    content = write(volume, dice, range(8))
    first, second = volume.depots
    for depot in (first, second):
        shutil.copytree(depot.store, directory / depot.store.parent.name, ignore=shutil.ignore_patterns("*.sock"))
    content |= write(volume, dice, range(4, 12))  # some are written anew, in the same segment and others
    volume.remount()
    run("ibpfs", "compact", volume.mountpoint)

    def roll_back(depot: Depot) -> None:
        shutil.rmtree(depot.store / "allocations")
        shutil.copytree(directory / depot.store.parent.name / "allocations", depot.store / "allocations")

    stopped([first], roll_back)
    until(lambda: are_back(volume))
    assert look(volume, content) == 0
    run("ibpfs", "repair", volume.root)
    second.kill()
    assert look(volume, content) == 0, "not everything was mended"
    second.start()
    until(lambda: are_back(volume))
    stopped([first, second], roll_back)
    until(lambda: are_back(volume))
    assert look(volume, content) > 0
