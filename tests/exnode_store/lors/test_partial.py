"""Parts of downloads: ours go on, or begin anew; what somebody else left under such a name stays as it is."""

from pathlib import Path

import pytest

from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.lors.partial import PartialFile
from ibpfs.exnode_store.sharing.receiving import _own_directory
from tests.exnode_store.sharing.test_notation import CONTENT

ONE, OTHER = "0" * 64, "1" * 64


@pytest.mark.parametrize("name", [".f.part", ".f.part.done"])
@pytest.mark.parametrize("text", [b"mine", b"mine\n" * 50, b"0" * 64 + b"x\n"])
def test_files_of_others(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    for resume in (True, False):
        with pytest.raises(IbpfsError, match="no download made it"):
            PartialFile(tmp_path / "f", ONE, 10, resume=resume)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: text}


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(f"{ONE}\nmine\n")
    for name in (".f.part", ".f.part.done"):
        (tmp_path / name).symlink_to("mine")
        with pytest.raises((IbpfsError, OSError)):
            PartialFile(tmp_path / "f", ONE, 10)
        (tmp_path / name).unlink()
    assert (tmp_path / "mine").read_text() == f"{ONE}\nmine\n"


@pytest.mark.parametrize("resume", [True, False])
def test_directories_of_others(tmp_path: Path, resume: bool) -> None:
    mine = tmp_path / ".tree.part"
    mine.mkdir()
    (mine / "thesis").write_bytes(b"mine")
    with pytest.raises(IbpfsError, match="no download made it"):
        _own_directory(mine, CONTENT, resume=resume)
    assert (mine / "thesis").read_bytes() == b"mine"


def test_ours_go_on(tmp_path: Path) -> None:
    for identity, resume, had in ((ONE, True, 0), (ONE, True, 4), (OTHER, True, 0), (OTHER, False, 0)):
        partial = PartialFile(tmp_path / "f", identity, 10, resume=resume)
        assert partial.done_bytes == had
        partial.write(0, b"data")
        partial.close()


def test_killed_before_the_data_is_there(tmp_path: Path) -> None:
    for record in ("", f"{ONE}\n"):
        (tmp_path / ".f.part.done").write_text(record)
        partial = PartialFile(tmp_path / "f", ONE, 4)
        partial.write(0, b"data")
        partial.finish(overwrite=False)
        partial.close()
        assert (tmp_path / "f").read_bytes() == b"data"
        (tmp_path / "f").unlink()
