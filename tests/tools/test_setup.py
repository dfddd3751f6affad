"""What tools/setup changes of the system, on copies of the files."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


def spare(conf: Path) -> str:
    script = f'set -eu; . "{TOOLS}/packages.sh"; spare_from_updatedb "$1"; spare_from_updatedb "$1"'
    subprocess.run(["sh", "-c", script, "sh", conf], check=True, env={**os.environ, "LC_ALL": "C"})
    return conf.read_text()


DEBIAN = """PRUNE_BIND_MOUNTS="yes"
# PRUNENAMES=".git .bzr .hg .svn"
PRUNEPATHS="/tmp /var/spool /media"
PRUNEFS="NFS afs fuse.glusterfs fuse.sshfs"
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (DEBIAN, DEBIAN.replace('PRUNEFS="', 'PRUNEFS="fuse.ibpfs ')),
        ('  PRUNEFS = "nfs"\n', '  PRUNEFS = "fuse.ibpfs nfs"\n'),
        ('PRUNEFS=""\n', 'PRUNEFS="fuse.ibpfs "\n'),
        ('PRUNEFS="nfs fuse.ibpfs"\n', 'PRUNEFS="nfs fuse.ibpfs"\n'),
        ('PRUNEFS="nfs fuse.ibpfs2"\n', 'PRUNEFS="fuse.ibpfs nfs fuse.ibpfs2"\n'),
        ('#PRUNEFS="nfs"\n', '#PRUNEFS="nfs"\nPRUNEFS="fuse.ibpfs"\n'),
    ],
)
def test_updatedb_leaves_volumes_alone(tmp_path: Path, before: str, after: str) -> None:
    conf = tmp_path / "updatedb.conf"
    conf.write_text(before)
    assert spare(conf) == after


def test_without_updatedb_nothing_is_made(tmp_path: Path) -> None:
    subprocess.run(["sh", "-c", f'set -eu; . "{TOOLS}/packages.sh"; spare_from_updatedb "$1"', "sh", tmp_path / "conf"],
                   check=True)  # fmt: skip
    assert not list(tmp_path.iterdir())
