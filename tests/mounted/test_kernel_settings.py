"""What a mount by root raises in the kernel, and the write-back cache, which needs that."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .running import BIN, Done, run, until
from .volumes import ALONE, Volume, mount_table

pytestmark = [pytest.mark.mounted, pytest.mark.root]

Shell = Callable[..., Done]

# Every way to write, through a mapping too, and what must be read at once by others; prints what it found wrong.
PROGRAM = """
import mmap, os, subprocess, sys, time
place = sys.argv[1]
name = lambda one: os.path.join(place, one)
read = lambda one: open(name(one), "rb").read()
# Small writes at odd places, over each other and behind the end.
model = bytearray()
with open(name("written"), "w+b", buffering=0) as file:
    for number in range(600):
        start, data = number * 7919 % 500_000, bytes([number % 251]) * (number % 97 * 50 + 1)
        os.pwrite(file.fileno(), data, start)
        model.extend(bytes(max(0, start - len(model))))
        model[start:start + len(data)] = data
    assert os.fstat(file.fileno()).st_size == len(model), "size"
    assert read("written") == model, "written"
    # Cut in the middle of a dirty page and made longer: what was behind the cut is gone.
    for size in (300_001, 299_000, 450_000):
        os.ftruncate(file.fileno(), size)
        model[size:] = bytes(max(0, size - len(model)))
    assert read("written") == model, "truncated"
    with mmap.mmap(file.fileno(), 0) as view:
        view[123_456:123_466] = b"0123456789"
        model[123_456:123_466] = b"0123456789"
        assert view[:] == model, "seen through the mapping"
        os.pwrite(file.fileno(), b"behind the mapping", 123_460)
        model[123_460:123_478] = b"behind the mapping"
        assert view[123_456:123_480] == model[123_456:123_480], "written behind the mapping"
assert read("written") == model, "mapped"
open(name("expected"), "wb").write(model)
# Several programs append lines: each stays whole, none is lost.
code = ("import os, sys; f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\\n"
        "for n in range(300): os.write(f, f'{sys.argv[2]} {n:05}\\\\n'.encode())")
open(name("lines"), "wb").close()
writers = [subprocess.Popen([sys.executable, "-c", code, name("lines"), str(who)]) for who in range(3)]
assert [writer.wait() for writer in writers] == [0, 0, 0]
lines = read("lines").decode().splitlines()
assert sorted(lines) == sorted(f"{who} {n:05}" for who in range(3) for n in range(300)), "appended"
# The blocks are those of the depots' bytes, a second later at most.
with open(name("sized"), "wb", buffering=0) as file:
    file.write(b"x" * 100_000)
    os.fsync(file.fileno())
    until = time.monotonic() + 20
    while os.fstat(file.fileno()).st_blocks * 512 < 100_000:
        assert time.monotonic() < until, "blocks"
        time.sleep(0.1)
# Times that were set stay although pages are written later.
with open(name("timed"), "wb", buffering=0) as file:
    file.write(b"x" * 100_000)
    os.utime(file.fileno(), ns=(1, 10**18))
assert os.stat(name("timed")).st_mtime_ns == 10**18, "mtime"
"""


@pytest.fixture
def shell(volume: Volume) -> Iterator[Shell]:
    """Runs shell lines in a mount namespace of their own; $V is a volume, unmounted, $M its mount point."""
    volume.umount()

    def call(lines: str, code: int | None = 0) -> Done:
        script = f"{ALONE}V={volume.root}\nM={volume.mountpoint}\n{lines}\n"
        script += "code=$?\numount -l $M 2>/dev/null\nexit $code\n"
        return run("unshare", "-m", "sh", "-c", script, code=code)

    yield call
    until(lambda: not set(volume.processes()) - set(volume.embedded_depot()), what="the end of the mount")


FUSECTL = "umount -l /sys/fs/fuse/connections 2>/dev/null; mount -t fusectl fusectl /sys/fs/fuse/connections\n"
CONNECTION = "C=/sys/fs/fuse/connections/$(mountpoint -d $M | cut -d: -f2)\n"


def test_the_mount_reads_far_ahead(volume: Volume) -> None:
    (line,) = [one for one in mount_table() if os.fsdecode(one.split()[4]) == str(volume.mountpoint)]
    device = line.split()[2].decode()
    assert int(Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text()) >= 1024


def test_the_mount_is_known_by_its_volume_and_type(volume: Volume) -> None:
    (line,) = [one for one in mount_table() if os.fsdecode(one.split()[4]) == str(volume.mountpoint)]
    kind, source = line.split(b" - ")[1].split()[:2]
    assert (kind, os.fsdecode(source)) == (b"fuse.ibpfs", str(volume.root))


def test_many_background_requests_may_be_in_flight(shell: Shell) -> None:
    said = shell(f"{FUSECTL} mount.ibpfs $V $M && {CONNECTION} cat $C/max_background $C/congestion_threshold").stdout
    assert [int(word) for word in said.split()] == [64, 48]


def test_the_write_back_cache_changes_no_byte(shell: Shell, volume: Volume, directory: Path) -> None:
    (directory / "program.py").write_text(PROGRAM)
    program = f"{BIN}/python {directory}/program.py $M"
    done = shell(f"{FUSECTL} mount.ibpfs $V $M -o writeback && {program} && umount.ibpfs $M")
    assert "stays off" not in done.stderr
    volume.mount()
    assert (volume / "written").read_bytes() == (volume / "expected").read_bytes()
    assert len((volume / "lines").read_text().splitlines()) == 900
    assert (volume / "timed").stat().st_mtime_ns == 10**18
    volume.umount()
    volume.fsck("--data", "-n")


def test_the_write_back_cache_is_really_on(shell: Shell) -> None:
    """A write is answered from memory while the process that serves the mount is stopped."""
    lines = """
        mount.ibpfs $V $M -o writeback && echo begin > $M/f && exec 3>>$M/f || exit 1
        P=$(ibpfs status --json $V | sed 's/.*"pid": \\([0-9]*\\).*/\\1/' | tr -d '\\n')
        kill -STOP $P
        timeout 10 sh -c 'echo more >&3'; C=$?
        kill -CONT $P
        exec 3>&-
        cat $M/f
        (exit $C)
        """
    assert shell(FUSECTL + lines).stdout == "begin\nmore\n"


def test_the_write_back_cache_is_refused_in_one_line(shell: Shell) -> None:
    without = "while umount -l /sys/fs/fuse/connections 2>/dev/null; do :; done\n"
    done = shell(f"{without} mount.ibpfs $V $M -o writeback && echo works > $M/f && cat $M/f")
    assert done.stdout == "works\n"
    assert done.stderr.count("\n") == 1
    assert "write-back cache stays off" in done.stderr
    assert "fusectl" in done.stderr
