"""Files of mounts as exNodes that need no mount."""

import json
import random

import pytest

from .running import run
from .volumes import MakeVolume, Volume

pytestmark = pytest.mark.mounted

DATA = random.Random(5).randbytes(3_000_000)


def test_a_plain_volume(volumes: MakeVolume) -> None:
    volume: Volume = volumes("--plain", "--copies", "2", depots=2)
    (volume / "f").write_bytes(DATA)
    document = volume.mountpoint.parent / "f.json"
    run("ibpfs", "export", volume / "f", "-o", document, "-b", "1M", "-c", "2")
    extents = json.loads(document.read_text())["extents"]
    assert len(extents) == 6
    assert {extent["alloc_offset"] for extent in extents} == {0}
    assert {tuple(extent["mapping"]) for extent in extents} == {("read",)}
    (volume / "f").write_bytes(b"another")
    volume.flush()
    run("ibpfs", "download", document, "-o", document.parent / "out")
    assert (document.parent / "out").read_bytes() == DATA


def test_a_sealed_volume(volume: Volume) -> None:
    (volume / "f").write_bytes(DATA)
    document = volume.mountpoint.parent / "f.xnd"
    done = run("ibpfs", "export", volume / "f", "-o", document, code=2)
    assert "is sealed; --decrypt" in done.stderr
    assert not document.exists()
    done = run("ibpfs", "export", volume / "f", "-o", document, "--decrypt", "--all-rights")
    assert "others cannot reach" in done.stderr
    run("ibpfs", "download", document, "-o", document.parent / "out")
    assert (document.parent / "out").read_bytes() == DATA
    run("ibpfs", "trim", document, "-m", "0", "--force")
    done = run("ibpfs", "export", document, code=1)
    assert "ibpfs upload takes any file" in done.stderr
