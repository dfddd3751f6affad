"""Whether a disk syncs so quickly that an event loop may wait for it, instead of a thread."""

import math
from typing import Final

#: Seconds that one of the last two syncs may have taken; two, since one may have had to wait for a processor.
QUICK: Final = 0.001
#: After a sync that took so long (seconds), and that everybody has waited for, so many are left to threads. One in a
#: thread may have been of much (a flush before 60 fsyncs had all of these wait for threads), and only prolongs that.
STALL: Final = 0.02
_PENANCE: Final = 100


class DiskPace:
    """Hears of every sync, wherever it was waited for."""

    def __init__(self) -> None:
        self._latest = math.inf, math.inf
        self._penance = 0

    @property
    def is_quick(self) -> bool:
        return not self._penance and min(self._latest) < QUICK

    def took(self, seconds: float, *, in_thread: bool) -> None:
        self._latest = self._latest[1], seconds
        stood_still = seconds >= STALL and (self._penance > 0 or not in_thread)
        self._penance = _PENANCE if stood_still else max(0, self._penance - 1)
