"""Links to files of a volume that seals with ChaCha20-Poly1305, as one does that was made where the CPU has no AES."""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway.browser import Browser
from tests.gateway.conftest import GatewayProcess

from .running import run, until
from .sharing import get, share
from .volumes import ALONE, MakeVolume, Session, Volume

pytestmark = [pytest.mark.mounted, pytest.mark.usefixtures("as_root")]

DATA = random.Random(20).randbytes(9_000_000)
#: mkfs where /proc/cpuinfo is another one.
WITHOUT_AES = f'{ALONE} mount --bind "$0" /proc/cpuinfo && exec mkfs.ibpfs "$@"'


@pytest.fixture
def chacha(session: Session, directory: Path) -> Iterator[Volume]:
    """Mounted, with two copies on two depots."""
    (directory / "cpuinfo").write_text("flags\t\t: fpu sse2\n")
    with ExitStack() as stack:
        depots = [stack.enter_context(session.depot()) for _ in range(2)]
        volume = Volume(session.directory())
        stack.callback(volume.clean_up)
        volume.depots = depots
        named = [word for depot in volume.depots for word in ("--depot", depot.address)]
        words = ["unshare", "--mount", "sh", "-c", WITHOUT_AES, directory / "cpuinfo", volume.root, *named]
        assert "chacha20-poly1305/1" in run(*words, "--copies", "2").stdout
        volume.mount()
        yield volume


def test_from_one_depot_of_two(chacha: Volume, directory: Path) -> None:
    """Sealed anew, all of it, and on both: one that is gone is not missed. Revoked, both are gone."""
    chacha.expect("does not answer")
    (chacha / "f").write_bytes(DATA)
    found = share(chacha / "f")
    assert (found["copied_bytes"], found["aliased_bytes"]) == (len(DATA), 0)
    assert "private cop" in found["revocation"]
    shown = json.loads(run("ibpfs", "share", "info", found["id"], "--json", "--volume", chacha.root).stdout)
    assert len(shown["depots"]) == 2
    chacha.depots[0].stop()
    get(directory / "a", found["link"])
    assert (directory / "a" / "f").read_bytes() == DATA
    chacha.depots[0].start()
    until(lambda: all(depot["state"] == "ok" for depot in chacha.status()["depots"]), 60)
    run("ibpfs", "share", "revoke", found["id"], "--volume", chacha.root)
    assert "revoked by its sender" in get(directory / "b", found["link"], code=1)
    chacha.drop_cache()
    assert (chacha / "f").read_bytes() == DATA


def test_in_a_browser(chacha: Volume, directory: Path) -> None:
    """Which has no ChaCha20."""
    (chacha / "tree").mkdir()
    (chacha / "tree" / "f").write_bytes(DATA)
    (chacha / "tree" / "g").write_bytes(b"short")
    gateway = GatewayProcess(directory, "--allow", "127.0.0.0/8")
    browser = Browser(directory)
    try:
        browser.go(share(chacha / "tree", "--gateway", gateway.url)["link"])
        for number, (name, data) in enumerate([("f", DATA), ("g", b"short")], start=1):
            browser.click(f"#files li:nth-child({number}) button:not([disabled])")
            assert browser.downloaded(name).read_bytes() == data
            browser.wait_for("document.querySelector('#state').textContent.startsWith('Done.')")
    finally:
        browser.close()
        assert gateway.stop() == 0


def test_adopted_either_way(chacha: Volume, volumes: MakeVolume, directory: Path) -> None:
    """A volume holds slices of both ciphers then, and gives links to them on."""
    other = volumes(depots=1)
    (chacha / "f").write_bytes(DATA)
    (other / "g").write_bytes(DATA[::-1])
    links = share(chacha / "f"), share(other / "g")
    get(directory, links[0]["link"], "--adopt", other.mountpoint)
    get(directory, links[1]["link"], "--adopt", chacha.mountpoint)
    with (chacha / "g").open("r+b") as file:
        file.write(b"with ChaCha20 again")
    until(lambda: _is_own(other, "f") and _is_own(chacha, "g"), 60)
    for volume, link in zip((chacha, other), links, strict=True):
        run("ibpfs", "share", "revoke", link["id"], "--volume", volume.root)
        volume.drop_cache()
    assert (other / "f").read_bytes() == DATA
    expected = b"with ChaCha20 again" + DATA[::-1][19:]
    assert (chacha / "g").read_bytes() == expected
    again = share(chacha / "g")
    assert again["copied_bytes"] >= 19
    get(directory, again["link"])
    assert (directory / "g").read_bytes() == expected
    chacha.umount()
    chacha.fsck("--data", "-n")


def _is_own(volume: Volume, name: str) -> bool:
    depots = {replica["depot"] for one in volume.stat(name)["segments"] for replica in one["replicas"]}
    return depots <= {depot.address for depot in volume.depots}
