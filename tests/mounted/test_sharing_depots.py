"""Links and the depots behind them: which of them give how much."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.gateway.browser import Browser
from tests.gateway.conftest import GatewayProcess

from .relays import Gate
from .test_sharing import LOADS, get, share
from .volumes import Session, Volume

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
