"""The file systems that are measured: how each is made, mounted, made to store all it has, and made to forget it."""

import json
import math
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 60.0
_LONGEST = 600.0
COMMANDS = Path(sys.executable).parent
Words = Sequence[str | Path]


class CannotMount(Exception):
    """A system did not come up."""


@dataclass(slots=True)
class Mounted:
    """`pid`: the process that serves the kernel; None where there is none, or another one after `forget`.

    `turns`: how many times it has waited for an answer from afar, where that is counted.
    """

    directory: Path
    store: Callable[[], object]
    forget: Callable[[], object]
    pid: int | None = None
    turns: Callable[[], int] | None = None

    def cpu_seconds(self) -> float:
        """What its process has used; NaN where there is none."""
        if self.pid is None:
            return math.nan
        return time.clock_gettime(~self.pid << 3 | 2)  # what clock_getcpuclockid(3) returns


@dataclass(frozen=True, slots=True)
class System:
    """`needs`: commands without which its column says missing."""

    name: str
    opened: Callable[[Path], AbstractContextManager[Mounted]]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [command for command in self.needs if shutil.which(command) is None]


# --- ourselves, and what we are measured by ---------------------------------------------------------------


@contextmanager
def _plain(place: Path) -> Iterator[Mounted]:
    """A directory of the disk itself. Its names stay in memory, whatever is forgotten."""
    directory = place / "files"
    directory.mkdir()

    def forget() -> None:
        sync(directory)
        for path in directory.rglob("*"):
            if path.is_file():
                forget_pages(path)

    yield Mounted(directory, lambda: sync(directory), forget)


@contextmanager
def _ceiling(place: Path) -> Iterator[Mounted]:
    mountpoint = place / "mnt"
    mountpoint.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "ibpfs_tools.benchmarks.ceiling", mountpoint], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout

    def forget() -> None:
        process.send_signal(signal.SIGUSR1)
        if not select.select([said], [], [], _PATIENCE)[0]:
            process.kill()
            raise CannotMount("the ceiling does not answer")
        said.readline()

    try:
        said.readline()
        _wait_mounted(mountpoint)
        _raise_read_ahead(mountpoint)
        yield Mounted(mountpoint, lambda: None, forget, process.pid)
    finally:
        _unmount(mountpoint)
        process.communicate()


@contextmanager
def _embedded(place: Path) -> Iterator[Mounted]:
    with ibpfs(place, []) as mounted:
        yield mounted


@contextmanager
def _three_depots(place: Path) -> Iterator[Mounted]:
    with ExitStack() as stack:
        words: list[str] = []
        for number in range(3):
            words += ["--depot", stack.enter_context(depot(place / f"depot-{number}"))]
        with ibpfs(place, [*words, "--copies", "2"]) as mounted:
            yield mounted


@contextmanager
def ibpfs(place: Path, words: Words) -> Iterator[Mounted]:
    volume, mountpoint = place / "volume", place / "mnt"
    mountpoint.mkdir()
    run([COMMANDS / "mkfs.ibpfs", volume, *words])
    run([COMMANDS / "mount.ibpfs", volume, mountpoint])
    try:
        yield Mounted(
            mountpoint,
            lambda: run([COMMANDS / "ibpfs", "flush", mountpoint]),
            lambda: run([COMMANDS / "ibpfs", "drop-cache", mountpoint]),
            _serving(volume),
        )
    finally:
        run([COMMANDS / "umount.ibpfs", mountpoint])


def _serving(volume: Path) -> int | None:
    text = run([COMMANDS / "ibpfs", "status", "--json", volume])
    pid = json.loads(text)["pid"]
    return None if pid is None else int(pid)


@contextmanager
def depot(store: Path, *words: str) -> Iterator[str]:
    """As an operator starts it, on a port of the system's choice; its address."""
    command = [sys.executable, "-m", "ibpfs_tools.depot", "--listen", "127.0.0.1:0", "--store", str(store), *words]
    with store.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


# --- peers ------------------------------------------------------------------------------------------------


@contextmanager
def _sshfs(place: Path) -> Iterator[Mounted]:
    with sshd(place) as (port, key), sshfs(place, port, key) as mounted:
        yield mounted


@contextmanager
def sshfs(place: Path, port: int, key: Path) -> Iterator[Mounted]:
    options = f"port={port},IdentityFile={key},UserKnownHostsFile=/dev/null,StrictHostKeyChecking=no,LogLevel=ERROR"
    with remounted(place, lambda to: ["sshfs", f"127.0.0.1:{place / 'backing'}", to, "-o", options]) as mounted:
        yield mounted


@contextmanager
def sshd(place: Path) -> Iterator[tuple[int, Path]]:
    """A server of our own on loopback, that knows one key."""
    host, key, port = place / "host", place / "key", free_port()
    for path in (host, key):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path])
    shutil.copy(key.with_suffix(".pub"), place / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": host, "AuthorizedKeysFile": place / "authorized",
        "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "Subsystem": "sftp internal-sftp",
        "PermitRootLogin": "prohibit-password", "LogLevel": "ERROR",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    server = subprocess.Popen([shutil.which("sshd") or "sshd", "-D", "-f", "/dev/null", *words])
    try:
        wait_for(lambda: _answers(port), "sshd")
        yield port, key
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _gocryptfs(place: Path) -> Iterator[Mounted]:
    backing = place / "backing"
    backing.mkdir()
    password = ["-q", "-extpass", "echo", "-extpass", "bench"]
    run(["gocryptfs", "-init", "-scryptn", "10", *password, backing])
    with remounted(place, lambda to: ["gocryptfs", *password, backing, to]) as mounted:
        yield mounted


@contextmanager
def _rclone(place: Path) -> Iterator[Mounted]:
    with rclone(place, str(place / "backing")) as mounted:
        yield mounted


@contextmanager
def rclone(place: Path, remote: str, more: str = "") -> Iterator[Mounted]:
    """`more`: what its configuration says of that remote."""
    port, config = free_port(), place / "rclone.conf"
    secret = run(["rclone", "obscure", secrets.token_hex(8)]).strip()
    config.write_text(f"{more}[bench]\ntype = crypt\nremote = {remote}\npassword = {secret}\n")
    common: Words = ["--config", config]
    control: Words = ["--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{port}"]
    cache: Words = ["--vfs-cache-mode", "writes", "--cache-dir", place / "cache", "--vfs-write-back", "1s"]

    def uploaded() -> bool:
        text = run(["rclone", *common, "rc", "--url", f"http://127.0.0.1:{port}", "vfs/stats"])
        disk = json.loads(text)["diskCache"]
        return not (disk["uploadsInProgress"] or disk["uploadsQueued"])

    def store() -> None:
        wait_for(uploaded, "rclone's uploads", patience=_LONGEST)
        sync(place / "backing")

    # Its own --daemon never returns where it serves a remote control.
    behind: Words = ["sh", "-c", '"$@" </dev/null >"$0" 2>&1 &', place / "rclone.log"]
    mount: Words = [*behind, "rclone", *common, "mount", *control, *cache, "bench:"]
    with remounted(place, lambda to: [*mount, to], store, place / "cache") as mounted:
        yield mounted


@contextmanager
def _s3ql(place: Path) -> Iterator[Mounted]:
    auth, backing, mountpoint = place / "auth", place / "backing", place / "mnt"
    backing.mkdir()
    mountpoint.mkdir()
    passphrase = secrets.token_hex(16)
    auth.write_text(f"[local]\nstorage-url: local://\nfs-passphrase: {passphrase}\n")
    auth.chmod(0o600)
    common: Words = ["--authfile", auth, "--cachedir", place / "cache"]
    run(["mkfs.s3ql", *common, f"local://{backing}"], f"{passphrase}\n{passphrase}\n")

    def mount() -> None:
        options: Words = ["--log", place / "s3ql.log", "--compress", "none"]
        run(["mount.s3ql", *common, *options, f"local://{backing}", mountpoint])

    def forget() -> None:
        run(["umount.s3ql", mountpoint])
        mount()

    def store() -> None:
        run(["s3qlctrl", "flushcache", mountpoint])
        sync(backing)  # it stores without a sync

    mount()
    try:
        yield Mounted(mountpoint, store, forget)
    finally:
        run(["umount.s3ql", mountpoint])


@contextmanager
def remounted(
    place: Path, command: Callable[[Path], Words], store: Callable[[], object] | None = None, cache: Path | None = None
) -> Iterator[Mounted]:
    """A peer that keeps its files below `backing`, and forgets by being mounted again, without its `cache`."""
    backing, mountpoint = place / "backing", place / "mnt"
    backing.mkdir(exist_ok=True)
    mountpoint.mkdir()
    stored = store or (lambda: sync(backing))

    def mount() -> None:
        run(command(mountpoint))
        _wait_mounted(mountpoint)

    def forget() -> None:
        stored()
        _unmount(mountpoint)
        if cache is not None:
            shutil.rmtree(cache, ignore_errors=True)  # it may still be ending, and has uploaded all
        mount()

    mount()
    try:
        yield Mounted(mountpoint, stored, forget)
    finally:
        stored()
        _unmount(mountpoint)


OURS, OURS_SPREAD, DISK, CEILING = "ibpfs", "ibpfs, 3 depots, 2 copies", "disk", "ceiling"
SSHFS, GOCRYPTFS, RCLONE, S3QL = "sshfs", "gocryptfs", "rclone crypt", "S3QL"
ALL: tuple[System, ...] = (
    System(OURS, _embedded),
    System(OURS_SPREAD, _three_depots),
    System(DISK, _plain),
    System(CEILING, _ceiling),
    System(SSHFS, _sshfs, ("sshfs", "sshd", "ssh-keygen")),
    System(GOCRYPTFS, _gocryptfs, ("gocryptfs",)),
    System(RCLONE, _rclone, ("rclone",)),
    System(S3QL, _s3ql, ("mkfs.s3ql", "mount.s3ql", "umount.s3ql", "s3qlctrl")),
)


# --- small things -----------------------------------------------------------------------------------------


def run(command: Words, given: str | None = None) -> str:
    """What it says; its errors are the caller's to read."""
    words = list(map(str, command))
    try:
        done = subprocess.run(
            words, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=_LONGEST,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CannotMount(f"{Path(words[0]).name} did not end within {_LONGEST:.0f} s") from None
    if done.returncode:
        raise CannotMount(f"{Path(words[0]).name} failed: {done.stdout.strip()[-500:]}")
    return done.stdout


def sync(directory: Path) -> None:
    run(["sync", "-f", directory])


def forget_pages(path: Path) -> None:
    """What the kernel keeps of a file, and nobody else."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _unmount(mountpoint: Path) -> None:
    """What a workload has just closed may still be busy for an instant."""
    deadline = time.monotonic() + _PATIENCE
    while mountpoint.is_mount():
        try:
            run(["fusermount3", "-u", mountpoint])
        except CannotMount:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _wait_mounted(mountpoint: Path) -> None:
    wait_for(mountpoint.is_mount, f"the mount on {mountpoint}")


def wait_for(done: Callable[[], bool], what: str, patience: float = _PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise CannotMount(f"waited {patience:.0f} s for {what}")
        time.sleep(0.02)


def _raise_read_ahead(mountpoint: Path) -> None:
    """As ibpfs does for its own mounts, where it may."""
    device = mountpoint.stat().st_dev
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if os.access(path, os.W_OK):
        path.write_text("1024")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
