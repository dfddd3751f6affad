"""What a word for a mount point means."""

from pathlib import Path

import pytest

from ibpfs.errors import IbpfsError
from ibpfs_tools.mounts import absolute


def test_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "up").symlink_to("real")
    (tmp_path / "link").symlink_to("up/mnt")
    (tmp_path / "dangling").symlink_to("real/none")
    monkeypatch.chdir(tmp_path)
    for number, target in enumerate(("up/mnt/", "real//mnt/.", "./up/../real/mnt///")):
        (tmp_path / f"slash{number}").symlink_to(target)
        assert absolute(f"slash{number}") == tmp_path / "real" / "mnt"
    for word in ("real/mnt", "up/mnt", "link", "real/../link", f"{tmp_path}/link", "./link/"):
        assert absolute(word) == tmp_path / "real" / "mnt"
    assert absolute("dangling") == tmp_path / "real" / "none"
    assert absolute("nowhere") == tmp_path / "nowhere"
    assert absolute("/") == Path("/")


def test_links_that_never_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(IbpfsError, match="symbolic links"):
        absolute(str(tmp_path / "a"))
