"""Volumes and depots of the tests: real ones, through the commands, cleaned up whatever happens."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .running import BIN, HEARD, Done, command_line, is_alive, kill, kill_and_wait, processes_of, run, until

#: A capability's key on the wire: "1#" and 24 bytes in the depot's base64.
CAPABILITY_KEY = re.compile(rb"1#[A-Za-z0-9+-]{32}|/(READ|WRITE|MANAGE)\b")
#: Shell lines for the begin of a mount namespace of a test's own: it must keep no other mount of ibpfs alive.
ALONE = """mount --make-rprivate /
for place in $(awk '$3 == "fuse.ibpfs" { print $2 }' /proc/mounts); do umount -l "$place" 2>/dev/null; done
"""
_ALARM = re.compile(r" (WARNING|ERROR|CRITICAL) | level=(warning|error|critical) |Traceback|Exception ignored")


class Depot:
    """An `ibpfs-depot` of its own, on a port of the system's choice that it keeps."""

    def __init__(self, directory: Path, *words: object, program: Sequence[object] = (BIN / "ibpfs-depot",)) -> None:
        self.store = directory
        self._program = program
        self.errors = directory.with_suffix(".log")
        self._words = words
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*map(str, self._program), "--listen", "127.0.0.1:0", "--store", self.store, *map(str, self._words)],
                stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert " ready " in line, self.errors.read_text()
        self.address = line.split()[-1]

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def allocations(self) -> list[Path]:
        return allocation_files(self.store)


def allocation_files(store: Path) -> list[Path]:
    """Those that hold bytes of files; the checkpoints are in record logs."""
    files = [path for path in (store / "allocations").rglob("*") if path.is_file()]
    return [path for path in files if not is_record_log(path)]


def is_record_log(path: Path) -> bool:
    """Behind the depot's own header. One that was released just now is none of ours any more, either."""
    try:
        with path.open("rb") as file:
            return b"IBPRLOG1" in file.read(8192)
    except FileNotFoundError:
        return True


class Volume:
    """A volume and the directory it is mounted on."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "volume"
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir()
        self.depots: list[Depot] = []
        self.expected = ""
        self._mounted_with: tuple[str, ...] = ()

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.mountpoint / name

    def expect(self, pattern: str) -> None:
        """Claim warnings in the log: unclaimed ones fail the test."""
        self.expected = f"{self.expected}|{pattern}" if self.expected else pattern

    # Up

    def make(self, *words: object) -> None:
        run("mkfs.ibpfs", self.root, *words)

    def mount(self, *words: str, code: int = 0) -> Done:
        self._mounted_with = words
        done = run("mount.ibpfs", self.root, self.mountpoint, *words, code=code)
        if code == 0:
            assert self.is_mounted()
            self.processes()
        return done

    # Down

    def umount(self, code: int = 0) -> Done:
        return run("umount.ibpfs", self.mountpoint, code=code)

    def remount(self, *, cold: bool = False) -> None:
        self.umount()
        if cold:
            self.empty_cache()
        self.mount(*self._mounted_with)

    def kill(self) -> None:
        """End the mount's processes as a crash would; leaves the dead mount for the next one to take away."""
        kill_and_wait(self.status()["pids"])

    def empty_cache(self) -> None:
        for entry in (self.root / "cache").iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    # What it says of itself

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("ibpfs", "status", "--json", self.root).stdout)
        return found

    def flush(self, code: int = 0) -> Done:
        return run("ibpfs", "flush", self.mountpoint, code=code)

    def drop_cache(self, code: int = 0) -> Done:
        return run("ibpfs", "drop-cache", self.mountpoint, code=code)

    def stat(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("ibpfs", "stat", "--json", self / name).stdout)
        return found

    def fsck(self, *words: str, code: int | None = 0) -> Done:
        return run("fsck.ibpfs", self.root, *words, code=code, timeout=300)

    def is_mounted(self) -> bool:
        return any(os.fsdecode(line.split()[4]) == str(self.mountpoint) for line in mount_table())

    def processes(self) -> list[int]:
        return processes_of(self.root)

    def embedded_depot(self) -> list[int]:
        return processes_of(self.root / "depot")

    def spool_files(self) -> list[Path]:
        return sorted((self.root / "spool").glob("*.spool"))

    def wait_until_free(self, seconds: float = 60.0) -> None:
        """Wait for the end of what drains in the background."""
        until(lambda: run("flock", "-n", self.root / "run" / "lock", "true", code=None).returncode == 0, seconds)

    def log(self) -> str:
        texts = [path.read_text(errors="replace") for path in sorted((self.root / "log").glob("*.log*"))]
        return "".join(texts)

    # The end

    def clean_up(self) -> None:
        """Take everything away; AssertionError (afterwards) when the log holds an alarm or a secret."""
        HEARD.errors.append(self.log()) if self.root.exists() else None
        detach_below(self.base)
        depot = self.embedded_depot()
        self._end([pid for pid in self.processes() if pid not in depot])
        kill_and_wait(self.processes(), signal.SIGTERM)  # the depot, or one that was started just now
        try:
            self.check_log()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)

    @staticmethod
    def _end(pids: list[int]) -> None:
        with suppress(AssertionError):  # a mount that was taken away ends when the depots have everything
            until(lambda: not any(is_alive(pid) for pid in pids), 1 if pids else 0)
        for pid in pids:
            kill(pid, signal.SIGTERM)
        with suppress(AssertionError):
            until(lambda: not any(is_alive(pid) for pid in pids), 5)
        kill_and_wait(pids)

    def check_log(self) -> None:
        if not self.root.exists():
            return
        text = self.log()
        claimed = re.compile(self.expected) if self.expected else None
        alarms = [
            line for line in text.splitlines() if _ALARM.search(line) and not (claimed and claimed.search(line))
        ]
        assert not alarms, "unclaimed alarms in the log:\n" + "\n".join(alarms[:20])
        secret = find_secret(text.encode(), self.secrets())
        assert not secret, f"the log holds a secret: {secret!r}"

    def secrets(self) -> list[bytes]:
        """Key material as it could be written down by mistake."""
        with suppress(FileNotFoundError):
            return list(re.findall(rb"[A-Za-z0-9+/=_-]{32,}", (self.root / "volume.key").read_bytes()))
        return []


def find_secret(text: bytes, secrets: list[bytes]) -> bytes:
    """Return what in `text` is a capability or one of `secrets`; with bytes around it."""
    found = CAPABILITY_KEY.search(text)
    if found:
        return text[max(0, found.start() - 60) : found.end()]
    return next((secret for secret in secrets if secret in text), b"")


def mount_table() -> list[bytes]:
    return Path("/proc/self/mountinfo").read_bytes().splitlines()


def detach_below(directory: Path) -> None:
    """Take away whatever is mounted below a directory of ours, busy or dead."""
    needle = os.fsencode(directory)
    for line in reversed(mount_table()):
        place = line.split()[4]
        if place.startswith(needle + b"/"):
            subprocess.run(["umount", "-l", place], check=False, capture_output=True)


class Session:
    """The directory that holds all of a test session, and the promise that nothing of it is left."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ibpfs-test-"))
        self.base.chmod(0o755)
        self._count = 0

    def directory(self) -> Path:
        self._count += 1
        directory = self.base / str(self._count)
        directory.mkdir()
        return directory

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        directory = self.directory()
        try:
            yield directory
        finally:
            detach_below(directory)
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def depot(self, *words: object, **more: Any) -> Iterator[Depot]:
        depot = Depot(self.directory() / "depot", *words, **more)
        try:
            yield depot
        finally:
            depot.stop(signal.SIGKILL)
            HEARD.errors.append(depot.errors.read_text())
            shutil.rmtree(depot.store.parent, ignore_errors=True)

    @contextmanager
    def volume(self, *words: object, depots: int = 0, mount: bool = True, options: str = "") -> Iterator[Volume]:
        """A volume made with `words`, on so many depots of its own (0: the embedded one), mounted or not."""
        with _all(self.depot() for _ in range(depots)) as started:
            volume = Volume(self.directory())
            volume.depots = started
            try:
                named = [word for depot in started for word in ("--depot", depot.address)]
                volume.make(*named, *words)
                if mount:
                    volume.mount(*(["-o", options] if options else []))
                yield volume
            finally:
                volume.clean_up()

    def close(self) -> None:
        """Remove everything; AssertionError when a test left a mount, a process or a file."""
        pids = processes_of(self.base)
        lines = [command_line(pid) for pid in pids]
        mounts = [line for line in mount_table() if os.fsencode(self.base) in line]
        files = [str(path) for path in self.base.glob("*")]
        detach_below(self.base)
        for pid in pids:
            kill(pid)
        shutil.rmtree(self.base, ignore_errors=True)
        assert not lines, f"processes were left behind: {lines}"
        assert not mounts, f"mounts were left behind: {mounts}"
        assert not files, f"files were left behind: {files}"


@contextmanager
def _all(managers: Iterator[Any]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]


MakeVolume = Callable[..., Volume]
MakeDepot = Callable[..., Depot]
