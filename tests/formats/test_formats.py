"""A volume that the first release wrote opens in every later one, with all that it held.

`volume-1.tar.xz` was made by 0.1.0: written through a mount, partly overwritten, unmounted; then one file more, and the
mount and its depot killed before it left the spool.
"""

import tarfile
from pathlib import Path

import pytest

from ibpfs.config import VolumePaths
from ibpfs.exnode_store.fsck import check_store
from ibpfs.exnode_store.fsck_faults import Checkup, Outcome, never
from tests.cache.stack import Stack, run_depot, run_stack

SEALED = Path(__file__).with_name("volume-1.tar.xz")


@pytest.fixture
def volume(tmp_path: Path) -> VolumePaths:
    root = tmp_path / "volume"
    with tarfile.open(SEALED) as tar:
        tar.extractall(root, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for path in root.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    root.chmod(0o700)
    return VolumePaths(root)


def find(stack: Stack, path: str) -> int:
    ino = 1
    for name in path.split("/"):
        ino = stack.names.lookup(ino, name.encode()).ino
    return ino


async def test_the_first_release_s_volume_opens_with_all_it_held(volume: VolumePaths) -> None:
    long = bytearray(b"".join(number.to_bytes(4, "big") for number in range(75_000)))
    long[100_001:100_012] = b"overwritten"
    async with run_depot(volume.depot), run_stack(volume) as now:
        assert now.recovered == len(b"only in the spool\n")
        await now.files.drop()
        for name, expected in {
            "directory/file": b"hello from the first release\n",
            "link": b"hello from the first release\n",
            "long": bytes(long),
            "spooled": b"only in the spool\n",
        }.items():
            assert await now.files.read(find(now, name), 0, 1 << 20) == expected
        sparse = now.files.inode(find(now, "sparse"))
        assert (sparse.size, sparse.allocated) == (10_000_003, 3)
        assert await now.files.read(sparse.ino, 9_999_999, 100) == b"\0end"
        assert now.files.inode(find(now, "directory/file")).nlink == 2
        assert now.names.readlink(find(now, "symlink")) == b"directory/file"
        assert now.names.getxattr(find(now, "directory/file"), b"user.colour") == b"blue"
        assert now.names.getxattr(find(now, "directory/file"), b"system.posix_acl_access")
        assert now.names.inode(find(now, "directory/deeper")).mtime_ns == -112_730_033_876_543_211
        assert now.names.lookup(1, b"\xff").is_regular


def test_the_first_release_s_volume_is_clean(volume: VolumePaths) -> None:
    said: list[str] = []
    checkup = Checkup(volume, never, said.append)
    check_store(checkup)
    assert checkup.outcome == Outcome(), said
