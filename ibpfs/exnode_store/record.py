"""What a depot's loads, or its stores, took: the record that `pace` judges."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

from ibpfs.depot.wire import DepotError, DepotUnreachable
from ibpfs.exnode_store.pace import KEPT, Sample, expected, is_slow, recent_pace

#: Seconds after which a command that was given up was slow.
_LONG = 1.0
#: Seconds for which a judgement holds.
_JUDGE_EVERY = 0.2


class Record:
    """The last commands of one kind, and those under way."""

    def __init__(self) -> None:
        self._done: deque[Sample] = deque(maxlen=KEPT)
        self._flying: dict[object, tuple[float, int]] = {}

    @contextmanager
    def timing(self, length: int) -> Iterator[None]:
        """A command that moves so many bytes. That one fails is another matter; one that nobody waited for in the end
        took at least so long, which says something only when it was long."""
        flight, began = object(), trio.current_time()
        self._flying[flight] = began, length
        tells = True
        try:
            yield
        except (DepotError, DepotUnreachable):
            tells = False
            raise
        except trio.Cancelled:
            tells = trio.current_time() - began >= _LONG
            raise
        finally:
            del self._flying[flight]
            if tells:
                self._done.append(Sample(began, trio.current_time() - began, length))

    @property
    def flying(self) -> int:
        """How many are under way."""
        return len(self._flying)

    def expected(self, length: int) -> float | None:
        """Seconds within which 95 of 100 such commands are answered; None when too few are known."""
        return expected(self._done, length)

    def recent_pace(self, now: float) -> float | None:
        return recent_pace(self._done, now)

    def is_slow(self, peers: Iterable["Record"], now: float) -> bool:
        """Beside the depot's own record and its peers'."""
        flying = [Sample(began, now - began, length) for began, length in self._flying.values()]
        return is_slow(self._done, flying, [one.recent_pace(now) for one in peers], now)


class Records:
    """Both kinds, of one depot."""

    def __init__(self) -> None:
        self.loads, self.stores = Record(), Record()
        self._judged = -math.inf, False

    def are_slow(self, peers: Iterable["Records"]) -> bool:
        """Whether one of them is, beside those of the other depots."""
        now = trio.current_time()
        if now > self._judged[0] + _JUDGE_EVERY:
            others = list(peers)
            slow = self.loads.is_slow((one.loads for one in others), now)
            self._judged = now, slow or self.stores.is_slow((one.stores for one in others), now)
        return self._judged[1]
