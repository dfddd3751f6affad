"""Noticing that the machine was suspended: connections are dead then, without knowing it."""

import logging
import time
from collections.abc import Callable
from typing import Final

import trio

LOOK_EVERY: Final = 2.0
_LEAST: Final = 1.0
_log = logging.getLogger(__name__)


def slept() -> float:
    """Seconds since the start of the machine during which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


async def watch_suspends(drop: Callable[[], None], clock: Callable[[], float] = slept) -> None:
    """Call `drop` after each suspend, until cancelled."""
    before = clock()
    while True:
        await trio.sleep(LOOK_EVERY)
        now = clock()
        if now > before + _LEAST:
            _log.info("the machine was suspended for %.0f s; connections to depots are made anew", now - before)
            drop()
        before = now
