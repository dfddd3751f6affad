"""The wall clock, without its jumps: leases are measured with it, on both sides."""

import time
from collections.abc import Callable

#: Seconds between this clock and the wall's from which that has been set, not merely corrected.
_STEP = 30.0


def _boot_time() -> float:
    """Goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Unix seconds that go on evenly: a wall clock that is set while we run ends no lease early, and none late."""

    def __init__(self, wall: Callable[[], float] = time.time, even: Callable[[], float] = _boot_time) -> None:
        self._wall = wall
        self._even = even
        self._offset = wall() - even()

    def __call__(self) -> float:
        return self._offset + self._even()

    def follow(self) -> bool:
        """Go on from where the wall clock is now, if it was set; whether it was."""
        offset = self._wall() - self._even()
        if abs(offset - self._offset) < _STEP:
            return False
        self._offset = offset
        return True
