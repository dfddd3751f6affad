"""Who waits for an fsync, so that others can leave the way free."""

import math
from types import TracebackType

import trio

#: Seconds after an fsync within which the next one is expected.
_SOON = 0.1


class Fsyncs:
    """A context manager around each of them."""

    def __init__(self) -> None:
        self._waiting = 0
        self._ended_at = -math.inf

    @property
    def are_one(self) -> bool:
        """Whether nobody else waits for one."""
        return self._waiting == 1

    @property
    def go_on(self) -> bool:
        """Whether somebody waits for one, or did so just now and will most likely again."""
        return self._waiting > 0 or trio.current_time() - self._ended_at < _SOON

    def __enter__(self) -> None:
        self._waiting += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting -= 1
        self._ended_at = trio.current_time()
