"""Depots and a shell for the verbs on exNode documents."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ibpfs_tools import exits
from ibpfs_tools.verbs import ibpfs
from tests.depot.conftest import DepotProcess

SIZE = 1_500_000
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def depots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[DepotProcess]]:
    directory = tmp_path_factory.mktemp("depots")
    options = ("--listen", "127.0.0.1:0", "--capacity", "1G")
    started = [DepotProcess(directory / f"store{number}", *options) for number in range(3)]
    yield started
    for depot in started:
        assert depot.stop() == 0
        assert "level=warning" not in depot.errors.read_text()


@pytest.fixture
def places(depots: list[DepotProcess]) -> list[str]:
    return [word for depot in depots for word in ("--depot", depot.address)]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `ibpfs` in an empty directory: exit code, what it says, its errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            exits.run(ibpfs, exits.COMMAND, [str(word) for word in words])
        told = capsys.readouterr()
        assert "/READ" not in told.out + told.err
        assert "MANAGE" not in told.out + told.err
        return int(str(leaving.value.code)), told.out, told.err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.bin"
    path.write_bytes(random.Random(7).randbytes(SIZE))
    return path


def listing(call: Call, document: str, *options: str) -> dict[str, Any]:
    code, out, _ = call("ls", document, "--json", *options)
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found
