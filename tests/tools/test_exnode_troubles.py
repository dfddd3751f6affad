"""The verbs on exNode documents when depots, documents or people get in the way."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.depot.conftest import DepotProcess
from tests.mounted.running import until
from tests.tools.conftest import Call, listing


def test_a_broken_download_goes_on(call: Call, file: Path, tmp_path: Path, depots: list[DepotProcess]) -> None:
    other = DepotProcess(tmp_path / "other", "--listen", "127.0.0.1:0")
    try:
        places = ["--depot", depots[0].address, "--depot", other.address]
        assert call("upload", file, "-b", "100K", "-o", "x.xnd", *places)[0] == 0
        other.stop(signal.SIGKILL)
        code, _, err = call("download", "x.xnd", "-o", "out", "--streams", "1")
        assert code == 1
        assert other.address in err
        assert not Path("out").exists()
        assert {row["alive"] for row in listing(call, "x.xnd")["mappings"]} == {True, None}
    finally:
        other.stop(signal.SIGKILL)
    again = DepotProcess(tmp_path / "other", "--listen", other.address.removeprefix("ibp://"))
    try:
        code, _, err = call("download", "x.xnd", "-o", "out")
        assert code == 0
        assert "764.8 KiB of it earlier" in err  # what the first depot has
        assert Path("out").read_bytes() == file.read_bytes()
        assert not list(tmp_path.glob(".out*"))
    finally:
        again.stop(signal.SIGKILL)


def test_a_killed_download_goes_on(call: Call, file: Path, tmp_path: Path, depots: list[DepotProcess]) -> None:
    """kill -9 while one of the depots is silent: what the other gave is not fetched again."""
    places = ["--depot", depots[0].address, "--depot", depots[1].address]
    assert call("upload", file, "-b", "100K", "-o", "x.xnd", *places)[0] == 0
    depots[1].process.send_signal(signal.SIGSTOP)
    try:
        words = [Path(sys.executable).parent / "ibpfs", "download", "x.xnd", "-o", "out", "--streams", "32"]
        process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
        record = tmp_path / ".out.part.done"
        until(lambda: record.exists() and record.read_text().count("\n") == 2 + 8, what="one depot's bytes")
        process.kill()
        process.wait(20)
    finally:
        depots[1].process.send_signal(signal.SIGCONT)
    assert not Path("out").exists()
    code, _, err = call("download", "x.xnd", "-o", "out")
    assert code == 0
    assert "764.8 KiB of it earlier" in err
    assert Path("out").read_bytes() == file.read_bytes()
    assert not list(tmp_path.glob(".out*"))


def test_a_depot_that_is_gone(call: Call, file: Path, depots: list[DepotProcess]) -> None:
    """Uploads go to the others; when there are too few, what was stored is given back and nothing is written."""
    places = ["--depot", "ibp://127.0.0.1:1", "--depot", depots[0].address, "--depot", depots[1].address]
    assert call("upload", file, "-b", "100K", "-c", "2", "-o", "x.xnd", *places)[0] == 0
    assert listing(call, "x.xnd")["copies"] == 2
    before = _allocations(depots)
    code, _, err = call("upload", file, "-b", "100K", "-c", "3", "-o", "y.xnd", *places)
    assert code == 1
    assert "ibp://127.0.0.1:1" in err
    assert not Path("y.xnd").exists()
    assert _allocations(depots) == before


def test_a_depot_without_room_is_named(call: Call, file: Path, tmp_path: Path, depots: list[DepotProcess]) -> None:
    before = _allocations(depots)
    full = DepotProcess(tmp_path / "full", "--listen", "127.0.0.1:0", "--capacity", "4K")
    try:
        for places in ([full], [full, depots[0]], [depots[0], full]):
            words = [word for depot in places for word in ("--depot", depot.address)]
            code, _, err = call("upload", file, "-c", str(len(places)), "-o", "y.xnd", *words)
            assert code == 1
            assert f"{full.address}: the depot answered -19" in err
            assert not Path("y.xnd").exists()
    finally:
        full.stop()
    assert _allocations(depots) == before


def test_a_bar_on_a_terminal_and_none_in_a_pipe(file: Path, tmp_path: Path, places: list[str]) -> None:
    words = [Path(sys.executable).parent / "ibpfs", "upload", file, "-b", "100K", "-o", "x.xnd", *places]
    terminal, its_end = pty.openpty()
    subprocess.run(words, cwd=tmp_path, stderr=its_end, check=True, timeout=30)
    os.close(its_end)
    shown = os.read(terminal, 1 << 16)
    os.close(terminal)
    assert b"uploading in.bin" in shown
    assert b"100%" in shown
    done = subprocess.run([*words, "--force"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr.count("\n") == 1
    assert "%" not in done.stderr


def test_a_deadline(call: Call, file: Path, depots: list[DepotProcess], places: list[str]) -> None:
    for depot in depots:
        os.kill(depot.process.pid, signal.SIGSTOP)
    try:
        code, _, err = call("upload", file, "-o", "x.xnd", "--deadline", "200ms", *places)
    finally:
        for depot in depots:
            os.kill(depot.process.pid, signal.SIGCONT)
    assert code == 1
    assert "not done within 0.2 s" in err
    assert not Path("x.xnd").exists()


def test_an_interrupt(file: Path, tmp_path: Path, depots: list[DepotProcess], places: list[str]) -> None:
    os.kill(depots[0].process.pid, signal.SIGSTOP)
    try:
        words = [Path(sys.executable).parent / "ibpfs", "upload", file, "-b", "100K", *places]
        process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        until(lambda: _connections(process.pid) > 8, what="transfers to begin")
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert (process.wait(30), told) == (130, "ibpfs: interrupted\n")
        process.stderr.close()
    finally:
        os.kill(depots[0].process.pid, signal.SIGCONT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin"]


def _connections(pid: int) -> int:
    with suppress(OSError):  # a descriptor that was closed meanwhile
        links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
        return sum(link.name.startswith("socket:") for link in links)
    return 0


def _allocations(depots: list[DepotProcess]) -> int:
    """Bytes that are leased, on all depots."""
    used = 0
    for depot in depots:
        client = depot.connect()
        client.send("1 4 1 1 ibp 10\n")
        length = int(client.line().split()[1])
        text = client.read(length).decode()
        used += int(text.split(" UT:")[1].split()[0])
        client.close()
    return used


@pytest.mark.parametrize("size", [1 << 42, 1 << 62])
def test_a_claimed_size_costs_nothing(call: Call, file: Path, places: list[str], size: int) -> None:
    """One line of error, whatever a document claims; no list as long as the file."""
    call("upload", file, "-F", "1", "-o", "x.json", *places)
    document = json.loads(Path("x.json").read_text())
    extents = [row | {"size": size, "alloc_length": size} for row in document["extents"]]
    Path("y.json").write_text(json.dumps(document | {"size": size, "extents": extents}))
    for words in (["download", "-o", "out"], ["ls"], ["augment", *places], ["exnode", "validate"]):
        code, _, err = call(*words, "y.json") if words[0] == "exnode" else call(words[0], "y.json", *words[1:])
        assert (code, err.count("\n")) in ((1, 1), (0, 0)), (words, err)
    assert not Path("out").exists()
