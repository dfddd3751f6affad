"""What a depot has done since it started, as numbers. Knows nobody who reads them."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

#: Upper ends of the classes of sync durations, in seconds.
SYNC_CLASSES: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
OK: Final = "ok"
LOST: Final = "connection_lost"


@dataclass(slots=True)
class Traffic:
    """Bytes to and from all peers, in whatever the connections carry."""

    received: int = 0
    sent: int = 0


@dataclass(slots=True)
class Durations:
    """`classes[i]` counts those up to SYNC_CLASSES[i], the last one the longer ones."""

    classes: list[int] = field(default_factory=lambda: [0] * (len(SYNC_CLASSES) + 1))
    total: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.classes)

    def add(self, seconds: float) -> None:
        self.classes[bisect_left(SYNC_CLASSES, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Counters:
    """`commands`: by name and result. `refused`, `dismissed`: connections not let in, or sent away, by reason."""

    traffic: Traffic = field(default_factory=Traffic)
    commands: Counter[tuple[str, str]] = field(default_factory=Counter)
    connections: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dismissed: Counter[str] = field(default_factory=Counter)
    failed_sessions: int = 0
