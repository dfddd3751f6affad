"""ibpfs warm as a person calls it."""

import subprocess
from pathlib import Path

import pytest

from ibpfs_tools.warm import describe, trouble

from .conftest import Call

WELL = {"renewed": 1, "not_renewed": 0, "under_replicated_bytes": 0, "at_risk_bytes": 0, "survives_until": 86400.0}


def test_all_is_well() -> None:
    assert describe(WELL, 0) == (
        "1 lease renewed, all copies stand; with nothing renewed from now on, all is kept for 24 hours"
    )
    assert trouble(WELL) == ""
    assert describe({**WELL, "survives_until": None}, 0).endswith("all is kept for good")


def test_nothing_is_said_to_be_kept_where_nothing_is_stored() -> None:
    found = {**WELL, "renewed": 0, "survives_until": None, "is_empty": True}
    assert describe(found, 0) == "0 leases renewed; nothing of any file is stored on depots yet"
    assert describe({**found, "is_empty": False}, 0).endswith("all is kept for good")


def test_what_stays_wrong() -> None:
    found = {**WELL, "not_renewed": 2, "at_risk_bytes": 1024, "under_replicated_bytes": 2048}
    assert trouble(found) == "2 leases due and not renewed, 1.0 KiB at risk"
    assert "2.0 KiB lack copies" in describe(found, 0)


@pytest.mark.parametrize(("name", "option"), [("ibpfs-warm@", ""), ("ibpfs-warm-with@", "--with ")])
def test_units(call: Call, tmp_path: Path, name: str, option: str) -> None:
    assert call("warm", "--units", "--directory", tmp_path, "--calendar", "*:0/10") == (0, "", "")
    service, timer = tmp_path / f"{name}.service", tmp_path / f"{name}.timer"
    assert "OnCalendar=*:0/10\n" in timer.read_text()
    text = service.read_text()
    assert f" warm --quiet {option}%f\n" in text
    (program,) = [line.split()[0] for line in text.splitlines() if line.startswith("ExecStart=")]
    service.write_text(text.replace(program, "ExecStart=/bin/true"))  # ours is that of the test runner
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", service, timer], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_units_are_printed(call: Call) -> None:
    code, out, _ = call("warm", "--units")
    assert code == 0
    assert out.startswith("# ibpfs-warm@.service\n[Unit]\n")
    assert " warm --quiet %f\n" in out
    assert "\n# ibpfs-warm@.timer\n" in out


def test_which_volume(call: Call) -> None:
    assert call("warm") == (2, "", "ibpfs: which volume? (see --help)\n")
