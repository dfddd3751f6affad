"""Large files as shards of an erasure code, through the commands: two of six depots may go for ever."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from .running import BIN, run, until
from .test_recover import RESTORE
from .volumes import Depot, Session, Volume

pytestmark = pytest.mark.mounted

CONTENT = os.urandom(20_000_000)


def warm(volume: Volume) -> None:
    """What is large is stored as shards after it."""
    run("ibpfs", "warm", volume.root)
    assert volume.status()["coded_bytes"] >= 16_000_000


def data_holders(volume: Volume) -> list[Depot]:
    """The depots with the first two data shards of a large segment."""
    with closing(sqlite3.connect(volume.root / "exnode_store.sqlite")) as db:
        rows = db.execute(
            "SELECT d.address FROM replicas r JOIN depots d ON d.id = r.depot WHERE r.shard IN (0, 1)"
            " AND r.segment = (SELECT min(segment) FROM coded) ORDER BY r.shard"
        ).fetchall()
    by_address = {depot.address: depot for depot in volume.depots}
    return [by_address[address] for (address,) in rows]


def wipe(depot: Depot) -> None:
    depot.kill()
    shutil.rmtree(depot.store / "allocations")
    depot.start()


def test_two_of_six_depots_are_wiped_and_made_up_for(session: Session) -> None:
    with session.volume("--copies", "3", "--code", "4+2", depots=6) as volume:
        volume.expect("depot|allocation|segment")
        (volume / "large").write_bytes(CONTENT)
        volume.flush()
        warm(volume)
        status = volume.status()
        assert (status["under_replicated_bytes"], status["at_risk_bytes"], status["code_trouble"]) == (0, 0, None)
        assert "are stored as shards" in run("ibpfs", "status", volume.root).stdout
        coded = [one for one in volume.stat("large")["segments"] if one["code"]]
        assert all(one["code"] == "4+2" and len(one["replicas"]) == 6 for one in coded)
        assert "as 4+2 shards" in run("ibpfs", "stat", volume / "large").stdout
        for depot in data_holders(volume):
            wipe(depot)
        volume.drop_cache()
        assert (volume / "large").read_bytes() == CONTENT
        found = json.loads(run("ibpfs", "repair", "--json", volume.root).stdout)
        assert (found["under_replicated_bytes"], found["at_risk_bytes"]) == (0, 0)
        assert all(len(one["replicas"]) == 6 for one in volume.stat("large")["segments"] if one["code"])
        for depot in [one for one in volume.depots if one not in data_holders(volume)][:2]:
            wipe(depot)
        volume.drop_cache()
        assert (volume / "large").read_bytes() == CONTENT
        run("ibpfs", "repair", volume.root)
        volume.umount()
        assert "clean" in volume.fsck("--data", "-n").stdout


def test_recovered_without_the_depots_that_have_the_bytes_as_they_are(session: Session, directory: Path) -> None:
    with session.volume("--copies", "3", "--code", "4+2", depots=6) as volume:
        volume.expect("depot|allocation|segment")
        (volume / "large").write_bytes(CONTENT)
        volume.flush()
        warm(volume)
        string = directory / "string"
        string.write_text(run("ibpfs", "recovery-key", volume.root).stdout.splitlines()[-1])
        gone = data_holders(volume)
        volume.umount()
        shutil.rmtree(volume.root)
        for depot in gone:
            wipe(depot)
        alone = directory / "restored"
        done = subprocess.run([sys.executable, "-I", RESTORE, alone, "--from", string], check=False,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (alone / "large").read_bytes() == CONTENT
        run("ibpfs", "recover", volume.root, "--from", string)
        volume.mount()
        assert (volume / "large").read_bytes() == CONTENT


def test_killed_while_shards_are_made(session: Session) -> None:
    with session.volume("--copies", "2", "--code", "2+1", depots=3) as volume:
        volume.expect("depot|allocation|segment")
        (volume / "large").write_bytes(CONTENT)
        volume.flush()
        volume.umount()
        for _ in range(2):
            process = subprocess.Popen([BIN / "ibpfs", "warm", volume.root], stdout=subprocess.DEVNULL)
            until(lambda process=process: process.poll() is not None or count(volume, "pending"))
            process.send_signal(signal.SIGKILL)
            process.wait(20)
        assert count(volume, "pending") or count(volume, "coded")
        run("ibpfs", "warm", volume.root)
        assert count(volume, "coded")
        assert not count(volume, "pending")
        volume.mount()
        assert (volume / "large").read_bytes() == CONTENT
        volume.umount()
        assert "clean" in volume.fsck("--data", "-n").stdout


def count(volume: Volume, table: str) -> int:
    with closing(sqlite3.connect(volume.root / "exnode_store.sqlite")) as db:
        rows: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return rows


def test_links_and_exports_name_whole_copies(session: Session, directory: Path) -> None:
    with session.volume("--copies", "2", "--code", "2+1", depots=3) as volume:
        (volume / "large").write_bytes(CONTENT)
        volume.flush()
        warm(volume)
        link = json.loads(run("ibpfs", "share", "--json", volume / "large").stdout)["link"]
        run("ibpfs", "get", "-", "-o", directory / "got", input=link)
        assert (directory / "got").read_bytes() == CONTENT
        assert not [one for one in volume.stat("large")["segments"] if one["code"]]


def test_a_directory_is_put_under_a_code_and_out_of_it(session: Session) -> None:
    with session.volume("--copies", "2", depots=3) as volume:
        (volume / "tree").mkdir()
        (volume / "tree" / "large").write_bytes(CONTENT)
        volume.flush()
        said = run("ibpfs", "policy", "set", "-R", volume / "tree", "code=2+1").stdout
        assert said.endswith("; what is large as 2+1 shards\n")
        assert {one["code"] for one in volume.stat("tree/large")["segments"] if one["length"] > 8_000_000} == {"2+1"}
        volume.drop_cache()
        assert (volume / "tree" / "large").read_bytes() == CONTENT
        refused = run("ibpfs", "policy", "set", volume / "tree", "code=4+2", code=2).stderr
        assert "code 4+2 needs 6 depots; 3 take new bytes" in refused
        refused = run("ibpfs", "depots", "drain", volume.root, volume.depots[0].address, code=2).stderr
        assert "without it there are 2 depots for 3 shards" in refused
        run("ibpfs", "policy", "set", "-R", volume / "tree", "code=none")
        assert {one["code"] for one in volume.stat("tree/large")["segments"]} == {None}
        volume.drop_cache()
        assert (volume / "tree" / "large").read_bytes() == CONTENT


def test_a_file_of_shards_is_exported(session: Session) -> None:
    """It is stored in whole copies for it, on which windows are open as long as the exNode is to be of use."""
    with session.volume("--copies", "2", "--code", "4+2", depots=6) as volume:
        (volume / "large").write_bytes(CONTENT)
        volume.flush()
        warm(volume)
        document = volume.base / "large.json"
        run("ibpfs", "export", volume / "large", "-o", document, "--with-keys", "-d", "1h")
        assert not any(one["code"] for one in volume.stat("large")["segments"])
        run("ibpfs", "warm", volume.root)  # they stay so
        run("ibpfs", "download", document, "-o", volume.base / "copy")
        assert (volume.base / "copy").read_bytes() == CONTENT
        volume.drop_cache()
        assert (volume / "large").read_bytes() == CONTENT
