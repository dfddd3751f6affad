"""A depot, a gateway in a process of its own, and a browser."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.depot.conftest import DepotProcess

from .browser import Browser

PATIENCE = 10.0
PROGRAM = Path(sys.executable).with_name("ibpfs")


class GatewayProcess:
    """A real `ibpfs gateway`."""

    def __init__(self, directory: Path, *options: str, before: tuple[str, ...] = ()) -> None:
        self.log = directory / "gateway.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*before, PROGRAM, "gateway", "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().split()[-1]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def depot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DepotProcess]:
    started = DepotProcess(tmp_path_factory.mktemp("depot") / "store", "--listen", "127.0.0.1:0", "--capacity", "1G")
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One that may speak to the depots of this machine."""
    started = GatewayProcess(tmp_path_factory.mktemp("gateway"), "--allow", "127.0.0.0/8")
    yield started
    assert started.stop() == 0
    assert "Traceback" not in started.log.read_text()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with its key, which nobody has signed."""
    path = tmp_path_factory.mktemp("certificate") / "gate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=gate.example", "-keyout", path, "-out", f"{path}.crt"]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()
