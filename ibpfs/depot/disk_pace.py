"""Whether a disk syncs so quickly that an event loop may wait for it, instead of a thread."""

import math
from typing import Final

#: Seconds that one of the last two syncs may have taken; two, since one may have had to wait for a processor.
QUICK: Final = 0.001
#: After a sync that took so long (seconds), so many are left to threads: everybody has waited for it.
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

    def took(self, seconds: float) -> None:
        self._latest = self._latest[1], seconds
        self._penance = _PENANCE if seconds >= STALL else max(0, self._penance - 1)
