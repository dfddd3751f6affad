"""What a person reads of a status."""

import json
from pathlib import Path
from typing import Any

import pytest

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.creation import create_volume
from ibpfs_tools import mounts
from ibpfs_tools.status import describe, status

STATUS: dict[str, Any] = {
    "volume": "/v",
    "mountpoint": "/m",
    "pid": 7,
    "pids": [7],
    "version": "1.0",
    "dirty_bytes": 0,
    "spool_bytes": 0,
    "files": 3,
    "used_bytes": 2048,
    "segments": 2,
    "under_replicated_bytes": 0,
    "earliest_lease_end": None,
    "depots": [{"id": 1, "address": "ibp://a:1", "state": "ok", "free_bytes": 1 << 30}],
}


def test_all_is_well() -> None:
    lines = describe(STATUS, 0, "1.0")
    assert lines[0] == "/v: mounted on /m (process 7)"
    assert "3, 2.0 KiB in 2 segments" in lines[1]
    assert "nothing, all is on the depots" in lines[2]
    assert "permanent" in lines[4]
    assert "ibp://a:1, 1.0 GiB free" in lines[5]
    assert len(lines) == 6


@pytest.mark.parametrize(("behind", "said"), [(0, "7 s ago, holds everything"), (3.5, "7 s ago"), (None, "7 s ago")])
def test_the_checkpoint_holds_everything_only_where_that_is_known(behind: float | None, said: str) -> None:
    changes = {"checkpoint_at": 3, "checkpoint_behind": behind, "checkpoint_trouble": None, "recovery_advice": None}
    assert describe({**STATUS, **changes}, 10, "1.0")[-1] == f"  checkpoint      {said}"


def test_what_the_spool_keeps_waits_for_copies_not_for_upload() -> None:
    lines = describe({**STATUS, "spool_bytes": 4096, "retained_bytes": 3072, "under_replicated_bytes": 3100}, 0, "1.0")
    assert "nothing, all is on the depots" in lines[2]
    assert "3.0 KiB of the files are also kept in the spool" in lines[3]


def test_another_version_is_installed() -> None:
    assert "1.0 is running, 1.1 is installed" in describe(STATUS, 0, "1.1")[-1]


def test_not_mounted_and_waiting() -> None:
    changes = {"mountpoint": None, "pid": None, "dirty_bytes": 1024, "earliest_lease_end": 86400.0}
    lines = describe({**STATUS, **changes}, 0, "1.0")
    assert lines[0] == "/v: not mounted"
    assert "1.0 KiB" in lines[2]
    assert "first ends in 24 hours" in lines[4]


def test_what_is_at_risk_and_until_when_the_rest_is_kept() -> None:
    changes = {"at_risk_bytes": 2048, "under_replicated_bytes": 4096, "earliest_lease_end": 86400.0}
    lines = describe({**STATUS, **changes, "survives_until": 172800.0}, 0, "1.0")
    assert "4.0 KiB; 2.0 KiB at risk: no copy to spare" in lines[3]
    assert "first ends in 24 hours; with this machine off, all is kept for 2 days" in lines[4]
    assert "not kept any more" in describe({**STATUS, **changes, "survives_until": 0.0}, 0, "1.0")[4]


def test_until_when_links_hold() -> None:
    def told(seconds: float) -> str:
        return describe({**STATUS, "shares_hold_until": 5000.0 + seconds}, 5000.0, "1.0")[5]

    for seconds, text in ((3600, "60 minutes"), (3 * 3600, "3 hours"), (30 * 86400, "30 days"), (20, "20 seconds")):
        assert told(seconds) == f"  links           with this machine off, all hold for {text}"
    assert told(-1) == "  links           some do not hold any more"


@pytest.mark.parametrize("others", [1, 0])
def test_one_of_all_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others: int
) -> None:
    create_volume(VolumePaths(tmp_path / "fine"), depots=["ibp://127.0.0.1:1"])
    monkeypatch.setattr(mounts, "sources", lambda: [tmp_path / "gone", *[tmp_path / "fine"] * others])
    with pytest.raises(Exception, match="gone"):
        status.main(["--json"], standalone_mode=False)
    gone, *rest = json.loads(capsys.readouterr().out)
    assert (gone["volume"], set(gone)) == (str(tmp_path / "gone"), {"volume", "error"})
    assert [found["volume"] for found in rest] == [str(tmp_path / "fine")] * others
