import ctypes
import errno
import fcntl
import logging
import os
from array import array
from pathlib import Path
from types import SimpleNamespace

import pytest

from ibpfs import ext4
from ibpfs.ext4 import lay_out, spread_directories


def flags_of(directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY)
    try:
        flags = array("l", [0])
        fcntl.ioctl(fd, 0x80086601, flags)
        return flags[0]
    finally:
        os.close(fd)


def test_directories_below_are_spread_or_it_is_said_why_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ibpfs.ext4"):
        spread_directories(tmp_path)
    assert caplog.messages or flags_of(tmp_path) & 0x20000


def test_what_does_not_know_it_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ibpfs.ext4"):
        spread_directories(Path("/proc/self"))
    assert "directories are not spread" in caplog.text


def test_blocks_are_laid_out_behind_the_end(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    lay_out(fd, 4096, 1 << 20)
    status = os.fstat(fd)
    os.close(fd)
    assert status.st_size == 0
    assert status.st_blocks * 512 >= 1 << 20


def test_where_none_can_be_laid_out_that_is_all(caplog: pytest.LogCaptureFixture) -> None:
    fd, other = os.pipe()
    with caplog.at_level(logging.DEBUG, "ibpfs.ext4"):
        lay_out(fd, 0, 1 << 20)
    os.close(fd)
    os.close(other)
    assert "no blocks are laid out" in caplog.text


def test_a_full_disk_gets_back_what_it_gave_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ext4 does it: all blocks that there are, and ENOSPC."""
    libc = ctypes.CDLL(None, use_errno=True)

    def full(fd: int, mode: int, offset: object, length: object) -> int:
        libc.fallocate(fd, mode, offset, ctypes.c_int64(1 << 20))
        ctypes.set_errno(errno.ENOSPC)
        return -1

    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"what was there")
    monkeypatch.setattr(ext4, "_libc", SimpleNamespace(fallocate=full))
    lay_out(fd, 14, 16 << 20)
    os.fsync(fd)
    status = os.fstat(fd)
    os.close(fd)
    assert status.st_blocks * 512 <= 64 * 1024
    assert (tmp_path / "file").read_bytes() == b"what was there"
