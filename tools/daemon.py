"""Going into the background: the parent waits on a pipe until the mount answers or has failed with one line."""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from ibpfs_tools.exits import ExitCodes, ExitWith, explain

_log = logging.getLogger(__name__)

#: Descriptors the owner of a volume may need: its cache and spool files, depots' sockets.
_DESCRIPTORS = 65536


class Report:
    """The child's end of the pipe. After `ready` or `failed` nothing more is sent; without a pipe, nothing at all."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor: int | None = descriptor

    def note(self, text: str) -> None:
        self._send({"note": text})

    def ready(self) -> None:
        self._send({"ready": True})
        self.close()

    def failed(self, line: str, code: int) -> None:
        self._send({"error": line, "exit": code})
        self.close()

    def _send(self, message: dict[str, Any]) -> None:
        if self._descriptor is not None:
            with suppress(BrokenPipeError):  # whoever waited was interrupted
                os.write(self._descriptor, json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def run_in_background(work: Callable[[Report], None], codes: ExitCodes, note: Callable[[str], None]) -> None:
    """Run `work` in a process of its own; return once it has called `Report.ready`.

    ExitWith carries the child's one line when it fails before that.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _leave_the_terminal(writing)
        run_to_the_end(work, Report(writing), codes)
    os.close(writing)
    try:
        _wait(reading, child, codes, note)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(reading)


def _wait(reading: int, child: int, codes: ExitCodes, note: Callable[[str], None]) -> None:
    told = set()
    with os.fdopen(os.dup(reading), "rb") as pipe:
        for line in pipe:
            message = json.loads(line)
            if "note" in message:
                told.add(message["note"])
                note(message["note"])
            elif "error" in message:
                os.waitpid(child, 0)
                if message["error"] in told:  # a warning that turned out to be the end
                    raise click.exceptions.Exit(message["exit"])
                raise ExitWith(message["error"], message["exit"])
            else:
                return
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    raise ExitWith(f"the process that was to serve the mount {how}", codes.internal)


def run_to_the_end(work: Callable[[Report], None], report: Report, codes: ExitCodes) -> NoReturn:
    """The rest of a process's life."""
    code = 0
    try:
        work(report)
    except BaseException as error:
        line, code = explain(error, codes)
        report.failed(line, code)  # first: the log's notes to the one who waits would say it twice
        _log.critical("%s", line, exc_info=error if code == codes.internal else None)
    finally:
        with suppress(Exception):
            logging.shutdown()
        os._exit(code)


def _leave_the_terminal(keep: int) -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for entry in [int(name.name) for name in Path("/proc/self/fd").iterdir()]:
        if entry > 2 and entry != keep:
            with suppress(OSError):
                os.close(entry)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
