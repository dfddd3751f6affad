"""How fast a depot has been of late, and whether that is slow: by its own record and beside its peers. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Bytes that cost as much as a round trip. Seconds per cost are a depot's pace: one figure for all commands.
_UNIT = 128 * 1024
#: Commands that are remembered, and those of them that are recent.
KEPT = 64
_RECENT = 8
#: Seconds after which a command is held against no depot any more: a slow one gets another chance. One that is slow
#: again within so many seconds waits twice as long for the next: else what is read stops every 15 s, at one that does
#: not change. And seconds after which a command says nothing of what others can do.
_GRUDGE, _RELAPSE, _LONGEST_GRUDGE, _MEMORY = 15.0, 30.0, 120.0, 60.0
#: Seconds of recent work that a judgement needs, beside others and beside its own past: a machine that is busy for a
#: moment makes no depot slow.
_EVIDENCE, _LONG_EVIDENCE = 1.0, 2.0
#: So many times slower than what is usual is slow.
_SLOWER = 4.0
#: Seconds per cost (64 MiB/s) that are never slow, whatever others do.
_FAST = 0.002
#: Commands, of its own, that make something usual.
_USUAL = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """A command that moved bytes: when it began, how long it took (so far)."""

    began: float
    seconds: float
    length: int

    @property
    def cost(self) -> float:
        return 1 + self.length / _UNIT

    @property
    def pace(self) -> float:
        return self.seconds / self.cost


def expected(record: Sequence[Sample], length: int) -> float | None:
    """Seconds within which 95 of 100 commands of this length were answered; None when too few are known."""
    if len(record) < _USUAL:
        return None
    return _percentile([sample.pace for sample in record], 0.95) * (1 + length / _UNIT)


def recent_pace(record: Iterable[Sample], now: float) -> float | None:
    """Seconds per cost over what is recent; None without any."""
    recent = _recent(record, now - _MEMORY)
    cost = sum(sample.cost for sample in recent)
    return sum(sample.seconds for sample in recent) / cost if cost else None


def _recent(record: Iterable[Sample], since: float) -> list[Sample]:
    return [sample for sample in record if sample.began + sample.seconds > since][-_RECENT:]


def is_slow(
    record: Sequence[Sample], flying: Iterable[Sample], peers: Iterable[float | None], now: float,
    grudge: float = _GRUDGE,
) -> bool:  # fmt: skip
    """Whether a depot is slow: beside the median of its peers' recent paces, or beside its own 95th percentile before.

    `flying` are commands that are not answered yet: what they take so far counts where it is worse.
    """
    recent = _recent(record, now - grudge)
    late = [sample for sample in flying if sample.seconds > _EVIDENCE]
    paces = [_pace(some) for some in (recent, [*recent, *late], late) if sum(one.seconds for one in some) >= _EVIDENCE]
    pace = max(paces, default=0.0)
    if pace < _FAST:
        return False
    others = [one for one in peers if one is not None]
    if others and pace > _SLOWER * _percentile(others, 0.5):
        return True
    before = [sample.pace for sample in list(record)[:-_RECENT]]
    if max(sum(one.seconds for one in some) for some in (recent, late)) < _LONG_EVIDENCE:
        return False
    return len(before) >= _USUAL and pace > _SLOWER * _percentile(before, 0.95)


def _pace(samples: Iterable[Sample]) -> float:
    some = list(samples)
    return sum(sample.seconds for sample in some) / sum(sample.cost for sample in some)


def _percentile(values: Iterable[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


class Grudge:
    """For how many seconds slow commands are held against one depot."""

    def __init__(self) -> None:
        self.seconds = _GRUDGE
        self._slow_at = -math.inf  # last
        self._was_slow = False

    def judged(self, is_slow: bool, now: float) -> None:
        """What is found now."""
        if is_slow:
            if now - self._slow_at >= _RELAPSE:
                self.seconds = _GRUDGE
            elif not self._was_slow:
                self.seconds = min(2 * self.seconds, _LONGEST_GRUDGE)
            self._slow_at = now
        self._was_slow = is_slow


class HedgeBudget:
    """Lets one read in twenty be asked for twice; what was saved up before is bounded."""

    _SHARE, _MOST = 0.05, 20.0

    def __init__(self) -> None:
        self.reads = self.hedged = 0
        self._saved = 0.0

    def read(self) -> None:
        self.reads += 1
        self._saved = min(self._MOST, self._saved + self._SHARE)

    def take(self) -> bool:
        """Whether one more may be asked for; then it counts."""
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        self.hedged += 1
        return True
