"""The directory below a mount is not writable while it is hidden, and as it was afterwards."""

import stat
from pathlib import Path

import pytest

from ibpfs import kernel
from ibpfs.directory_below import DirectoryBelow
from ibpfs.mount_table import MountEntry


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryBelow:
    monkeypatch.setattr(kernel, "can_mount_beneath", lambda: False)  # as for an ordinary user
    (tmp_path / "mnt").mkdir(mode=0o775)
    (tmp_path / "mnt").chmod(0o775)
    return DirectoryBelow(tmp_path / "mnt", tmp_path / "note")


def mode(below: DirectoryBelow, tmp_path: Path) -> int:
    return stat.S_IMODE((tmp_path / "mnt").stat().st_mode)


def test_there_and_back(below: DirectoryBelow, tmp_path: Path) -> None:
    below.look()
    below.protect()
    assert mode(below, tmp_path) == 0o555
    below.release()
    assert mode(below, tmp_path) == 0o775
    assert not (tmp_path / "note").exists()


def test_the_next_mount_gives_it_back_after_a_crash(below: DirectoryBelow, tmp_path: Path) -> None:
    below.look()
    below.protect()
    other = DirectoryBelow(tmp_path / "elsewhere", tmp_path / "note")
    other.give_back()
    assert mode(below, tmp_path) == 0o775
    below.release()


def test_a_directory_that_was_not_writable_stays_so(below: DirectoryBelow, tmp_path: Path) -> None:
    (tmp_path / "mnt").chmod(0o500)
    below.look()
    below.protect()
    below.release()
    assert mode(below, tmp_path) == 0o500


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"directory": 1, "mode": "x"}', b"\xff"])
def test_a_damaged_note_is_nothing(below: DirectoryBelow, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "note").write_bytes(text)
    below.give_back()
    assert mode(below, tmp_path) == 0o775


def test_nothing_is_done_where_mounts_go_beneath_dead_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "can_mount_beneath", lambda: True)
    below = DirectoryBelow(tmp_path, tmp_path / "note")
    before = len([*Path("/proc/self/fd").iterdir()])
    below.look()
    below.protect()
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert not (tmp_path / "note").exists()
    below.release()


def test_one_that_another_mount_hides_is_given_back_later(
    below: DirectoryBelow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = MountEntry(1, "0:1", tmp_path / "mnt", (), "tmpfs", "tmpfs")
    below.look()
    below.protect()  # and killed
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    with monkeypatch.context() as hidden:
        hidden.setattr(kernel, "mount_at", lambda place: entry if place == entry.mountpoint else None)
        other = DirectoryBelow(tmp_path / "elsewhere", tmp_path / "note")
        other.give_back()
        other.look()
        other.protect()
        assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o555
        other.release()
        assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755
        assert mode(below, tmp_path) == 0o555
    DirectoryBelow(tmp_path / "elsewhere", tmp_path / "note").give_back()
    assert mode(below, tmp_path) == 0o775


def test_what_another_mount_hides_is_given_back_by_who_holds_it(
    below: DirectoryBelow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below.look()
    below.protect()
    entry = MountEntry(1, "0:1", tmp_path / "mnt", (), "tmpfs", "tmpfs")
    monkeypatch.setattr(kernel, "mount_at", lambda _: entry)
    below.release()
    assert mode(below, tmp_path) == 0o775
    assert not (tmp_path / "note").exists()
