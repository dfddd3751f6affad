"""A disk on which this user may write no more: the doctor says so."""

import errno
import json

import pytest

from tests.mounted.running import run

from .disks import Disk

pytestmark = pytest.mark.faults


def test_a_quota_that_is_used_up(disk: Disk) -> None:
    root = disk.mountpoint / "volume"
    run("mkfs.ibpfs", root)
    disk.ask("refuse", int(errno.EDQUOT))
    found = {one["code"]: one for one in json.loads(run("ibpfs", "doctor", "--json", root, code=1).stdout)}
    assert found["quota"]["place"] == str(root)
    assert "quota" in found["quota"]["cause"]
    disk.ask("refuse", 0)
