"""Read-ahead as a policy: from the reads of one open file, which bytes to fetch before they are asked for. Pure."""

MAX_WINDOW = 8 * 1024 * 1024
FIRST_WINDOW = 1024 * 1024
#: A window of this size or more ends at a multiple of it, where a slice of a stream does: so loads are large.
STEP = 4 * 1024 * 1024

#: The kernel sends the pieces of one big read out of order: so far from the expected place is still in sequence.
_SLACK = 1024 * 1024


class Readahead:
    """One per open file. The window opens with the second read in sequence and doubles; any jump closes it."""

    def __init__(self, limit: int = MAX_WINDOW) -> None:
        self._limit = limit
        self._reached: int | None = None  # behind the last byte read in sequence; None before the first read
        self._ahead = 0  # behind the last byte that was asked for ahead
        self._window = 0

    def note(self, offset: int, size: int) -> list[tuple[int, int]]:
        """Note a read; return the ranges to fetch now. They may lie beyond the end of the file."""
        stop = offset + size
        if self._reached is None or not self._reached - _SLACK <= offset <= self._reached + _SLACK:
            self._reached, self._ahead, self._window = stop, stop, 0
            return []
        self._reached = max(self._reached, stop)
        # Half a window at a time, not a little with each read.
        if self._window and self._ahead - self._reached > self._window // 2:
            return []
        self._window = min(self._limit, max(FIRST_WINDOW, self._window * 2))
        begin, end = max(self._ahead, self._reached), self._reached + self._window
        if self._window >= STEP:
            end -= end % STEP
        self._ahead = max(end, self._ahead)
        return [(begin, end)] if begin < end else []
