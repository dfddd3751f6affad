"""Who serves a mount is watched: when it is killed, another process takes the place of the dead mount.

The supervisor holds nothing but what is needed to start again; it ends with the process that it watches.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from ibpfs_tools.daemon import Report, run_to_the_end
from ibpfs_tools.exits import ExitCodes

_log = logging.getLogger(__name__)

#: So often within so many seconds a process is started again; what kills it then will kill the next one, too.
RESTARTS, WITHIN = 5, 60.0
_PAUSE = 0.2
_SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


class Supervisor:
    """Keeps one `serve` running; that is told whether it is started again.

    `left_behind` says whether the one that ended has left a dead mount.
    """

    def __init__(
        self, serve: Callable[[Report, bool], None], left_behind: Callable[[], bool], codes: ExitCodes,
        give_up: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._serve = serve
        self._left_behind = left_behind
        self._codes = codes
        self._give_up = give_up
        self._child = 0
        self._leaving = False

    def run(self, report: Report) -> None:
        """Start, and start again, until one ends by itself; then this process ends as that one did."""
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        started: list[float] = []
        code = self._one_life(report)
        while code < 0 and not self._leaving and self._left_behind():
            now = time.monotonic()
            started = [*(moment for moment in started if moment > now - WITHIN), now]
            if len(started) > RESTARTS:
                self._give_up(f"killed {len(started)} times within a minute (signal {-code}): not started again")
                break
            time.sleep(_PAUSE)
            if not self._leaving:
                code = self._one_life(Report(), again=True)
        _end_as(code)

    def _one_life(self, report: Report, *, again: bool = False) -> int:
        """Return its exit code, or the negative number of the signal that killed it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until it is known to whom they go
        self._child = os.fork()
        if not self._child:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            run_to_the_end(lambda report: self._serve(report, again), report, self._codes)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        report.close()
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._leaving = True
        if self._child:
            with suppress(ProcessLookupError):  # its end was learned in this instant
                os.kill(self._child, number)


def _end_as(code: int) -> None:
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)
