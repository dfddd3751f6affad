"""Links and the depots behind them: which of them give how much."""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ibpfs.exnode_store.sealing import MAX_SLICE
from tests.gateway.browser import Browser
from tests.gateway.conftest import GatewayProcess

from .relays import Gate
from .running import run, until
from .sharing import DATA, LOADS, get, refusal, share
from .volumes import MakeVolume, Session, Volume

pytestmark = pytest.mark.mounted


@contextmanager
def gated(session: Session, count: int) -> Iterator[tuple[Volume, list[Gate]]]:
    """A volume with a copy on each of its depots, which are behind gates."""
    with ExitStack() as stack:
        gates, depots = [], []
        for _ in range(count):
            with socket.create_server(("127.0.0.1", 0)) as place:
                port = place.getsockname()[1]
            gates.append(Gate("127.0.0.1", port))
            stack.callback(gates[-1].close)
            words = "--listen", f"127.0.0.1:{port}", "--public", f"127.0.0.1:{gates[-1].port}"
            depots.append(stack.enter_context(session.depot(*words)))
        named = [word for gate in gates for word in ("--depot", f"ibp://127.0.0.1:{gate.port}")]
        volume = stack.enter_context(session.volume(*named, "--no-tls", "--copies", count))
        volume.depots = depots
        yield volume, gates


def test_from_all_depots_at_once(session: Session, directory: Path) -> None:
    data = random.Random(3).randbytes(64 * 1024 * 1024)
    with gated(session, 2) as (volume, gates):
        (volume / "f").write_bytes(data)
        link = share(volume / "f", "--no-hash")["link"]
        before = [len(gate.heard) for gate in gates]
        get(directory, link)
        assert (directory / "f").read_bytes() == data
        heard = [bytes(gate.heard[at:]) for gate, at in zip(gates, before, strict=True)]
        loads = [len(LOADS.findall(one)) for one in heard]
        assert min(loads) >= 4, loads
        assert min(map(len, heard)) > len(data) // 8
        assert sum(map(len, heard)) < len(data) * 1.1


def test_small_files_are_few_loads(session: Session, directory: Path) -> None:
    with gated(session, 1) as (volume, (gate,)):
        (volume / "tree").mkdir()
        for number in range(300):
            (volume / "tree" / f"{number:03}").write_bytes(random.Random(number).randbytes(number * 11))
        link = share(volume / "tree")["link"]
        before = len(gate.heard)
        get(directory, link)
        run("diff", "-r", volume / "tree", directory / "tree")
        assert len(LOADS.findall(bytes(gate.heard[before:]))) < 20


def test_a_browser_asks_all_depots(session: Session, directory: Path) -> None:
    """And when one of them is gone, the other alone."""
    data = random.Random(4).randbytes(20 * 1024 * 1024)
    gateway = GatewayProcess(directory, "--allow", "127.0.0.0/8")
    browser = Browser(directory)
    try:
        with gated(session, 2) as (volume, gates):
            volume.expect("does not answer")
            (volume / "f").write_bytes(data)
            link = share(volume / "f", "--gateway", gateway.url)["link"]
            before = [len(gate.heard) for gate in gates]
            browser.go(link)
            browser.click("#found:not([hidden]) #download")
            assert browser.downloaded("f").read_bytes() == data
            assert all(len(gate.heard) - at > len(data) // 8 for gate, at in zip(gates, before, strict=True))
            volume.depots[0].stop()
            browser.go(link)
            browser.click("#found:not([hidden]) #download")
            assert browser.downloaded("f (1)").read_bytes() == data
    finally:
        browser.close()
        assert gateway.stop() == 0


def test_a_page_that_was_closed_goes_on(session: Session, directory: Path) -> None:
    """With what it had, which lies sealed with the browser, and is gone when all is done."""
    data = b"a line of figures, 12345678\n" * 1_500_000
    gateway = GatewayProcess(directory, "--allow", "127.0.0.0/8")
    browser = Browser(directory)
    try:
        with gated(session, 1) as (volume, (gate,)):
            (volume / "f").write_bytes(data)
            link = share(volume / "f", "--gateway", gateway.url)["link"]
            volume.umount()
            browser.go(link)
            browser.wait_for("!document.querySelector('#found').hidden")
            gate.let(30 * 1024 * 1024)  # of 40; four pieces of 4 are under way at once
            browser.click("#download")
            until(lambda: gate.is_shut, 60)
            until(lambda: _kept(browser) >= 2, 60)
            had = _kept(browser)
            browser.go("about:blank")
            gate.let(None)
            kept = _kept_bytes(directory)
            assert len(kept) > 8 * 1024 * 1024
            assert b"figures" not in kept
            before = len(gate.heard)
            browser.go(link)
            browser.wait_for("document.querySelector('#state').textContent.includes('from an earlier visit')")
            browser.click("#download")
            until(lambda: _whole(browser, len(data)), 60)
            assert _whole(browser, len(data))[0].read_bytes() == data
            loads = LOADS.findall(bytes(gate.heard[before:]))
            anew = [line for line in loads if int(line.split()[5]) > 1024 * 1024]
            assert 0 < len(anew) <= -(-len(data) // MAX_SLICE) - had
            browser.wait_for("document.querySelector('#state').textContent.startsWith('Done.')")
            assert _kept(browser) == 0
    finally:
        browser.close()
        assert gateway.stop() == 0


def _kept(browser: Browser) -> int:
    """How many pieces the browser keeps."""
    browser.run("""window.kept = null; (async () => {
        const names = await caches.keys(), found = await Promise.all(names.map((one) => caches.open(one)));
        const pieces = await Promise.all(found.map((one) => one.keys()));
        window.kept = [pieces.flat().length];
    })();""")
    return int(browser.wait_for("window.kept")[0])


def _whole(browser: Browser, size: int) -> list[Path]:
    """Downloads of this size: what broke off before keeps its name."""
    return [path for path in browser.finished() if path.stat().st_size == size]


def _kept_bytes(home: Path) -> bytes:
    """On its disk."""
    return b"".join(path.read_bytes() for path in home.rglob("CacheStorage/**/*") if path.is_file())


def test_plain_volumes(volumes: MakeVolume, directory: Path) -> None:
    """Sealed anew for the link."""
    volume = volumes("--plain", depots=1)
    (volume / "f").write_bytes(DATA)
    refused = run("ibpfs", "share", volume / "f", "--copy-limit", "1M", code=2).stderr
    assert "--copy-limit" in refused
    found = share(volume / "f")
    assert found["copied_bytes"] == len(DATA)
    get(directory, found["link"])
    assert (directory / "f").read_bytes() == DATA
    run("ibpfs", "share", "revoke", found["id"], "--volume", volume.root)
    assert "revoked by its sender" in refusal(directory / "b", found["link"])


def test_a_copy_near_the_receiver(two: Volume, session: Session, directory: Path) -> None:
    two.expect("does not answer")
    with session.depot() as near:
        (two / "f").write_bytes(DATA)
        found = share(two / "f", "--near", near.address)
        shown = json.loads(run("ibpfs", "share", "info", found["id"], "--json", "--volume", two.root).stdout)
        assert len(shown["depots"]) == 3
        get(directory, found["link"])
        assert (directory / "f").read_bytes() == DATA
        assert near.allocations()
        run("ibpfs", "share", "revoke", found["id"], "--volume", two.root)
        until(lambda: not near.allocations(), 20)


def test_staged_near_the_receiver(two: Volume, session: Session, directory: Path) -> None:
    """The depots copy it among themselves; afterwards the near one is enough, and is left as it was."""
    two.expect("does not answer")
    with session.depot() as near:
        (two / "f").write_bytes(DATA)
        link = share(two / "f")["link"]
        home = {"HOME": str(directory)}
        run("ibpfs", "stage", "-", near.address, "-d", "1h", input=link, cwd=directory, env=home)
        assert sum(path.stat().st_size for path in near.allocations()) > len(DATA)
        (staged,) = (directory / ".local" / "share" / "ibpfs" / "staged").iterdir()
        assert staged.stat().st_mode & 0o777 == 0o600
        before = [depot.errors.read_text() for depot in two.depots]
        get(directory, link)
        assert (directory / "f").read_bytes() == DATA
        assert before == [depot.errors.read_text() for depot in two.depots]
        elsewhere = directory / "elsewhere"
        had = len(near.allocations())
        get(elsewhere, link, "--near", near.address)
        assert (elsewhere / "f").read_bytes() == DATA
        assert len(near.allocations()) == had
        near.stop()
        said = run("ibpfs", "stage", "-", near.address, input=link, cwd=directory, env=home, code=1).stderr
        assert "nobody listens" in said


def test_adopted_by_another_volume(volumes: MakeVolume, directory: Path) -> None:
    """Nothing is copied at first; then the volume has copies of its own, and the link may end."""
    one, other = volumes("--copies", "2", depots=2), volumes(depots=1)
    (one / "tree").mkdir()
    (one / "tree" / "f").write_bytes(DATA)
    with (one / "tree" / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(1_000_000)
        file.write(b"end")
    (one / "tree" / "empty").touch()
    found = share(one / "tree")
    get(directory, found["link"], "--adopt", other.mountpoint)
    run("diff", "-r", one / "tree", other / "tree")
    assert "exists already" in refusal(directory, found["link"], "--adopt", other.mountpoint)
    depots = json.loads(run("ibpfs", "depots", other.mountpoint, "--json").stdout)
    assert [row["tls"] for row in depots] == [True] * 3

    def foreign() -> set[str]:
        return {replica["depot"] for one in other.stat("tree/f")["segments"] for replica in one["replicas"]}

    until(lambda: foreign() == {other.depots[0].address}, 60)
    until(lambda: "imported" not in other.stat("tree/sparse"), 60)
    run("ibpfs", "share", "revoke", found["id"], "--volume", one.root)
    other.drop_cache()
    run("diff", "-r", one / "tree", other / "tree")
    other.umount()
    other.fsck("--data", "-n")


def test_mended_when_a_replica_moves(volumes: MakeVolume, directory: Path) -> None:
    """A depot that was drained has no window any more: the record names another one then."""
    volume = volumes("--copies", "2", depots=3)
    (volume / "f").write_bytes(DATA)
    found = share(volume / "f")
    info = "ibpfs", "share", "info", found["id"], "--json", "--volume", volume.root
    first = json.loads(run(*info).stdout)["depots"][0]
    drained = first.replace("ibps:", "ibp:")
    run("ibpfs", "depots", "drain", volume.root, drained)
    volume.remount()
    until(lambda: first not in json.loads(run(*info).stdout)["depots"], 60)
    get(directory, found["link"])
    assert (directory / "f").read_bytes() == DATA
