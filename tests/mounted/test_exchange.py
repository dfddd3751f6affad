"""Files of mounts as exNodes that need no mount, and exNodes as files of mounts."""

import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.depot.conftest import LineClient

from .running import run, until
from .volumes import Depot, MakeDepot, MakeVolume, Volume

pytestmark = pytest.mark.mounted

DATA = random.Random(5).randbytes(3_000_000)


def extents(document: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(document.read_text())["extents"]
    return found


def as_libdlt_reads(rows: list[dict[str, Any]]) -> bytes:
    """It connects to `location` and loads `size` bytes from 0, knowing neither alloc_offset nor functions."""
    found = {}
    for row in rows:
        host, _, port = row["location"].removeprefix("ibp://").rpartition(":")
        key = row["mapping"]["read"].split("/")[3]
        client = LineClient(socket.create_connection((host, int(port)), timeout=20))
        client.send(f"0 8 {key} READ 0 {row['size']} 20 \n")
        assert client.line() == b"1 %d \n" % row["size"]
        found[row["offset"]] = client.read(row["size"])
        client.close()
    return b"".join(found[offset] for offset in sorted(found))


# --- export


def test_windows_on_a_plain_volume(volumes: MakeVolume) -> None:
    """A slice in a packed segment is named by an alias, from byte 0; what lies beside it cannot be read."""
    volume: Volume = volumes("--plain", "--copies", "2", depots=2)
    (volume / "before").write_bytes(b"secret" * 1000)
    (volume / "f").write_bytes(DATA)
    with (volume / "f").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"overwritten")
        file.truncate(4_000_000)  # a hole at the end, which LoRS would not know
    expected = (volume / "f").read_bytes()
    document = volume.base / "f.json"
    before = sum(len(depot.allocations()) for depot in volume.depots)
    run("ibpfs", "export", volume / "f", "-o", document, "-d", "1h")
    rows = extents(document)
    assert {row["alloc_offset"] for row in rows} == {0}
    assert all(row["alloc_length"] == row["size"] for row in rows)
    assert {tuple(row["mapping"]) for row in rows} == {("read",)}
    starts = [row["offset"] for row in rows]
    assert {starts.count(start) for start in starts if start < 3_000_000} == {2}
    assert [row["size"] for row in rows if row["offset"] >= 3_000_000] == [1_000_000]  # stored zeros
    stored = sum(path.stat().st_size for depot in volume.depots for path in depot.allocations())
    assert stored < 2 * len(DATA) + 1_500_000  # nothing else was copied
    assert sum(len(depot.allocations()) for depot in volume.depots) > before
    run("ibpfs", "download", document, "-o", volume.base / "out")
    assert (volume.base / "out").read_bytes() == expected
    assert as_libdlt_reads(rows) == expected


def test_a_copy_of_a_plain_file_stays_as_it_is(volumes: MakeVolume) -> None:
    volume: Volume = volumes("--plain", "--copies", "2", depots=2)
    (volume / "f").write_bytes(DATA)
    document = volume.base / "f.json"
    run("ibpfs", "export", volume / "f", "-o", document, "-b", "1M", "-c", "2", "--copy")
    assert len(extents(document)) == 6
    assert {tuple(row["mapping"]) for row in extents(document)} == {("read",)}
    (volume / "f").write_bytes(b"another")
    volume.flush()
    run("ibpfs", "download", document, "-o", volume.base / "out")
    assert (volume.base / "out").read_bytes() == DATA


def test_a_sealed_file_in_clear(volume: Volume) -> None:
    (volume / "f").write_bytes(DATA)
    document = volume.base / "f.xnd"
    done = run("ibpfs", "export", volume / "f", "-o", document, "--copy", code=2)
    assert "is sealed; --decrypt" in done.stderr
    assert not document.exists()
    done = run("ibpfs", "export", volume / "f", "-o", document, "--decrypt", "--all-rights")
    assert "others cannot reach" in done.stderr
    run("ibpfs", "download", document, "-o", volume.base / "out")
    assert (volume.base / "out").read_bytes() == DATA
    run("ibpfs", "trim", document, "-m", "0", "--force")
    done = run("ibpfs", "export", document, code=1)
    assert "is not on a mounted volume" in done.stderr


def test_a_sealed_file_as_it_is(volumes: MakeVolume) -> None:
    """For ibpfs alone: by whoever has the keys in the exNode, or on a volume that has them."""
    volume: Volume = volumes("--copies", "2", depots=2)
    with (volume / "f").open("wb") as file:
        file.write(DATA)
        file.truncate(9_000_000)
        file.seek(1_000_000)
        file.write(b"overwritten")
    expected = (volume / "f").read_bytes()
    bare, keyed = volume.base / "bare.xnd", volume.base / "keyed.json"
    done = run("ibpfs", "export", volume / "f", "-o", bare)
    assert "LoRS and libdlt cannot read it" in done.stderr
    assert "KEY" not in bare.read_text()
    run("ibpfs", "export", volume / "f", "-o", keyed, "--with-keys")
    done = run("ibpfs", "download", bare, "-o", volume.base / "out", code=1)
    assert "carries no key" in done.stderr
    run("ibpfs", "download", keyed, "-o", volume.base / "out")
    assert (volume.base / "out").read_bytes() == expected

    run("ibpfs", "import", bare, volume / "again")  # a reference: its own slices
    (volume / "f").unlink()
    volume.drop_cache()
    assert (volume / "again").read_bytes() == expected
    assert "imported" not in volume.stat("again")

    other: Volume = volumes()
    done = run("ibpfs", "import", bare, other / "g", code=1)
    assert "carries no key" in done.stderr
    assert list(other.mountpoint.iterdir()) == []
    done = run("ibpfs", "import", keyed, other / "g")
    assert "neither sealed" not in done.stderr
    other.drop_cache()
    assert (other / "g").read_bytes() == expected
    assert other.stat("g")["imported"]["unverified_slices"] == 0
    other.remount(cold=True)
    assert (other / "g").read_bytes() == expected
    other.umount()
    assert "imported slices have no digest" in other.fsck("--data", "-n").stdout


@pytest.mark.usefixtures("as_root")
def test_what_is_mounted_inside_is_no_part_of_the_volume(volume: Volume) -> None:
    """Its inode numbers are those of other files of the volume."""
    (volume / "inside").mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", volume / "inside")
    try:
        (volume / "inside" / "f").touch()
        for words in (["export", volume / "inside" / "f"], ["stat", volume / "inside" / "f"]):
            assert "is not on a mounted volume" in run("ibpfs", *words, code=1).stderr
    finally:
        run("umount", volume / "inside")


# --- import


@pytest.fixture
def uploaded(depots: MakeDepot, directory: Path) -> tuple[Path, list[Depot]]:
    """DATA on two foreign depots, two copies: x.xnd with all rights, given.json read-only."""
    started = [depots(), depots()]
    places = [word for depot in started for word in ("--depot", depot.address)]
    (directory / "in.bin").write_bytes(DATA)
    run("ibpfs", "upload", directory / "in.bin", "-c", "2", "-b", "1M", "-o", directory / "x.xnd", *places)
    run("ibpfs", "exnode", "convert", "--read-only", directory / "x.xnd", directory / "given.json")
    return directory, started


@pytest.mark.parametrize("words", [(), ("--plain",)])
def test_nothing_is_copied(volumes: MakeVolume, uploaded: tuple[Path, list[Depot]], words: tuple[str, ...]) -> None:
    directory, foreign = uploaded
    volume: Volume = volumes(*words)
    (volume / "mine").write_bytes(b"beside it")
    done = run("ibpfs", "import", directory / "given.json", volume.mountpoint)
    assert "nothing copied" in done.stderr
    assert "6 allocations cannot be renewed" in done.stderr
    assert "as the depots give them" in done.stderr
    assert (volume / "in.bin").read_bytes() == DATA
    told = volume.stat("in.bin")
    assert told["imported"]["not_renewable"] == 6
    assert {one["depot"] for segment in told["segments"] for one in segment["replicas"]} == {
        depot.address for depot in foreign
    }
    assert "cannot be renewed" in run("ibpfs", "stat", volume / "in.bin").stdout
    assert sum(path.stat().st_size for path in (volume.root / "depot").rglob("*") if path.is_file()) < 200_000
    done = run("ibpfs", "import", directory / "given.json", volume / "in.bin", code=1)
    assert done.stderr == f"ibpfs: {volume / 'in.bin'}: exists already\n"  # there is no --force here

    with (volume / "in.bin").open("r+b") as file:  # sealed slices beside raw ones
        file.seek(1_500_000)
        file.write(b"mine" * 1000)
    expected = bytearray(DATA)
    expected[1_500_000:1_504_000] = b"mine" * 1000
    volume.expect("does not answer")
    foreign[0].kill()  # one copy less
    volume.drop_cache()
    assert (volume / "in.bin").read_bytes() == expected
    volume.remount(cold=True)
    assert (volume / "in.bin").read_bytes() == expected
    volume.umount()
    volume.fsck("-n")


def test_what_is_deleted_stays_unless_it_is_owned(volume: Volume, uploaded: tuple[Path, list[Depot]]) -> None:
    directory, foreign = uploaded
    run("ibpfs", "import", directory / "x.xnd", volume / "a")
    run("ibpfs", "import", directory / "x.xnd", volume / "b", "--own")
    run("ibpfs", "import", directory / "x.xnd", volume / "c", "--own")
    for name in "ab":
        (volume / name).unlink()
    volume.flush()
    volume.drop_cache()
    assert (volume / "c").read_bytes() == DATA
    volume.umount()
    volume.fsck("--data", "-n")
    volume.mount()
    assert sum(len(depot.allocations()) for depot in foreign) == 6
    (volume / "c").unlink()
    until(lambda: not any(depot.allocations() for depot in foreign), what="the owned allocations to be released")
    volume.umount()
    volume.mount()
    assert len(json.loads(run("ibpfs", "status", "--json", volume.root).stdout)["depots"]) == 1


def test_what_cannot_be_imported(volume: Volume, uploaded: tuple[Path, list[Depot]]) -> None:
    directory, _ = uploaded
    document = json.loads((directory / "given.json").read_text())

    def refused(change: dict[str, Any], *words: str, code: int) -> str:
        (directory / "bad.json").write_text(json.dumps(document | change))
        done = run("ibpfs", "import", directory / "bad.json", volume / "bad", *words, code=code)
        assert done.stderr.count("\n") == 1
        assert list(volume.mountpoint.iterdir()) == []
        return done.stderr

    assert "--own" not in refused({}, "--own", code=2)
    gaps = {"extents": [row for row in document["extents"] if row["offset"]]}
    assert "no mapping has bytes 0 to" in refused(gaps, code=1)
    function = {"name": "checksum", "arguments": [{"name": "blocksize", "type": "integer", "value": 262177}]}
    conditioned = [row | {"function": function, "alloc_length": 1 << 21} for row in document["extents"]]
    assert "are conditioned ('checksum')" in refused({"extents": conditioned}, code=2)
    dead = [row | {"mapping": {"read": row["mapping"]["read"].replace("/1#", "/1#x")}} for row in document["extents"]]
    assert "are gone" in refused({"extents": dead}, code=1)
    many = [row | {"mapping": {"read": f"ibp://127.0.0.{n}:1/k/1/READ"}, "offset": n, "size": 1, "location": "ibp://"}
            for n, row in enumerate([document["extents"][0]] * 100)]  # fmt: skip
    assert "at most 64" in refused({"extents": many, "size": 100}, code=2)
    done = run("ibpfs", "import", directory / "x.xnd", directory / "elsewhere", code=1)
    assert "is not on a mounted volume" in done.stderr

    (directory / "gaps.json").write_text(json.dumps(document | gaps))
    run("ibpfs", "import", "--holes", directory / "gaps.json", volume / "sparse")
    assert (volume / "sparse").read_bytes() == bytes(1 << 20) + DATA[1 << 20 :]
    assert (volume / "sparse").stat().st_blocks * 512 < len(DATA)


def test_a_copy_undoes_functions(volume: Volume, uploaded: tuple[Path, list[Depot]]) -> None:
    directory, foreign = uploaded
    words = ["--depot", foreign[0].address, "--function", "checksum", "-o", directory / "sum.xnd"]
    run("ibpfs", "upload", directory / "in.bin", *words)
    assert "--copy does" in run("ibpfs", "import", directory / "sum.xnd", volume.mountpoint, code=2).stderr
    run("ibpfs", "import", directory / "sum.xnd", volume.mountpoint, "--copy")
    assert (volume / "in.bin").read_bytes() == DATA
    assert "imported" not in volume.stat("in.bin")


def test_from_volume_to_volume(volumes: MakeVolume) -> None:
    """An export of windows, which begin inside allocations, imported on another volume, and exported from there."""
    volume: Volume = volumes("--plain", depots=1)
    (volume / "f").write_bytes(DATA)
    run("ibpfs", "export", volume / "f", "-o", volume.base / "f.json")
    other: Volume = volumes()
    run("ibpfs", "import", volume.base / "f.json", other / "g")
    assert (other / "g").read_bytes() == DATA
    run("ibpfs", "export", other / "g", "-o", other.base / "g.json")  # raw parts of a sealed volume
    run("ibpfs", "download", other.base / "g.json", "-o", other.base / "out")
    assert (other.base / "out").read_bytes() == DATA
