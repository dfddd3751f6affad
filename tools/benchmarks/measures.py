"""What was measured, and what follows from it: medians, and ratios taken per round. Knows no clock."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

MISSING = math.nan


@dataclass(slots=True)
class Measures:
    """One value per row and round; `MISSING` where a round has none."""

    values: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    def begin_round(self) -> None:
        self.rounds += 1

    def add(self, row: str, value: float, unit: str) -> None:
        """The row's value in this round."""
        column = self.values.setdefault(row, [])
        column.extend([MISSING] * (self.rounds - 1 - len(column)))
        column.append(value)
        self.units[row] = unit

    def of(self, row: str) -> list[float]:
        column = self.values.get(row, [])
        return column + [MISSING] * (self.rounds - len(column))

    def median(self, row: str) -> float:
        return median_of(self.of(row))

    def best(self, row: str) -> float:
        return max(present(self.of(row)), default=MISSING)

    def ratio(self, row: str, reference: str) -> float:
        """The median of the rounds' ratios: what slows a whole round down cancels out."""
        return median_of(ratios(self.of(row), self.of(reference)))


def present(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def median_of(values: Sequence[float]) -> float:
    known = present(values)
    return median(known) if known else MISSING


def ratios(values: Sequence[float], references: Sequence[float]) -> list[float]:
    """Per round; only rounds that have both."""
    pairs = zip(values, references, strict=True)
    return present([value / reference if reference else MISSING for value, reference in pairs])


@dataclass(frozen=True, slots=True)
class Target:
    """A row is to reach `least`: an absolute value, or a share of `reference`; and no more than `most`."""

    row: str
    least: float
    reference: str | None = None
    most: float = math.inf

    def reached(self, measures: Measures) -> float:
        return measures.ratio(self.row, self.reference) if self.reference else measures.median(self.row)

    def met(self, measures: Measures) -> bool:
        return self.least <= self.reached(measures) <= self.most
