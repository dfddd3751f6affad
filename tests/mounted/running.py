"""Running commands as a person or a script would, and looking at the processes of the test run's volumes.

Everything that was said and every command line that was seen is kept, to be searched for secrets at the end.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
Done = subprocess.CompletedProcess[str]


@dataclass
class Heard:
    """What the session's commands said on standard error, and the command lines of its processes."""

    errors: list[str] = field(default_factory=list)
    command_lines: set[bytes] = field(default_factory=set)


HEARD = Heard()


def run(
    *words: object,
    code: int | None = 0,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    **more: Any,
) -> Done:
    """Run a command, of ours or of the system; `code` is how it must end (None: any way)."""
    more.setdefault("stdin", subprocess.DEVNULL) if "input" not in more else None
    done = subprocess.run(
        [str(word) if not isinstance(word, bytes) else word for word in words],
        capture_output=True, text=True, errors="surrogateescape", timeout=timeout, check=False,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8", **(env or {})}, **more,
    )  # fmt: skip
    HEARD.errors.append(done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    if code is not None:
        assert done.returncode == code, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def until(condition: Callable[[], object], seconds: float = 20.0, what: str = "") -> None:
    """Wait for other processes: real time is the subject here."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what or condition} did not come true in {seconds} s"
        time.sleep(0.02)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def processes_of(directory: Path) -> list[int]:
    """Processes that name something below `directory` on their command line, without this one and its parents."""
    mine, pid = set(), os.getpid()
    while pid > 0 and pid not in mine:
        mine.add(pid)
        pid = parent(pid)
    found = []
    inside = re.compile(re.escape(os.fsencode(directory)) + rb"[/\0]")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        line = command_line(int(entry.name))
        if inside.search(line):
            HEARD.command_lines.add(line)
            found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_and_wait(pids: list[int], number: int = signal.SIGKILL, seconds: float = 20.0) -> None:
    for pid in pids:
        kill(pid, number)
    until(lambda: not any(is_alive(pid) for pid in pids), seconds, f"the end of {pids}")
