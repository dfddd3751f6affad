"""What a depot's loads, or its stores, took: the record that `pace` judges."""

import math
from collections import deque
from collections.abc import Iterable
from types import TracebackType

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.pace import KEPT, Grudge, Sample, expected, is_slow, recent_pace

#: Seconds after which a command that was given up was slow.
_LONG = 1.0
#: Seconds for which a judgement holds.
_JUDGE_EVERY = 0.2


class Record:
    """The last commands of one kind, and those under way."""

    def __init__(self) -> None:
        self._done: deque[Sample] = deque(maxlen=KEPT)
        self._flying: dict[object, tuple[float, int]] = {}

    def timing(self, length: int) -> "_Timing":
        """A command that moves so many bytes. That one fails is another matter; one that nobody waited for in the end
        took at least so long, which says something only when it was long."""
        return _Timing(self._done, self._flying, length)

    @property
    def flying(self) -> int:
        """How many are under way."""
        return len(self._flying)

    def expected(self, length: int) -> float | None:
        """Seconds within which 95 of 100 such commands are answered; None when too few are known."""
        return expected(self._done, length)

    def recent_pace(self, now: float) -> float | None:
        return recent_pace(self._done, now)

    def is_slow(self, peers: Iterable["Record"], now: float, grudge: float) -> bool:
        """Beside the depot's own record and its peers'."""
        flying = [Sample(began, now - began, length) for began, length in self._flying.values()]
        return is_slow(self._done, flying, [one.recent_pace(now) for one in peers], now, grudge)


class _Timing:
    """No generator: it is in every command that moves bytes."""

    __slots__ = ("_began", "_done", "_flying", "_length")

    def __init__(self, done: deque[Sample], flying: dict[object, tuple[float, int]], length: int) -> None:
        self._done, self._flying, self._length = done, flying, length

    def __enter__(self) -> None:
        self._began = trio.current_time()
        self._flying[self] = self._began, self._length

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._flying[self]
        took = trio.current_time() - self._began
        if isinstance(error, DepotError | DepotUnreachable) or (isinstance(error, trio.Cancelled) and took < _LONG):
            return
        self._done.append(Sample(self._began, took, self._length))


class Records:
    """Both kinds, of one depot."""

    def __init__(self) -> None:
        self.loads, self.stores = Record(), Record()
        self._judged = -math.inf, False
        self._grudge = Grudge()

    def are_slow(self, peers: Iterable["Records"]) -> bool:
        """Whether one of them is, beside those of the other depots."""
        now = trio.current_time()
        if now > self._judged[0] + _JUDGE_EVERY:
            others, grudge = list(peers), self._grudge.seconds
            slow = self.loads.is_slow((one.loads for one in others), now, grudge)
            slow = slow or self.stores.is_slow((one.stores for one in others), now, grudge)
            self._grudge.judged(slow, now)
            self._judged = now, slow
        return self._judged[1]
