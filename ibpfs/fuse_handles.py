"""What the kernel holds of us: open files and directories, and how often it was told of each inode."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class OpenFile:
    """An open file of some program. `touched`: its access time needs no further look; `writes`: opened for that."""

    ino: int
    touched: bool
    writes: bool = False


@dataclass(slots=True)
class OpenDirectory:
    """An open directory of some program."""

    ino: int


class Handles(Generic[T]):
    """Numbers for what is open, from `first` on; none is used twice."""

    def __init__(self, first: int = 1) -> None:
        self._open: dict[int, T] = {}
        self._numbers = itertools.count(first)

    def add(self, opened: T) -> int:
        number = next(self._numbers)
        self._open[number] = opened
        return number

    def __getitem__(self, number: int) -> T:
        return self._open[number]

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def __iter__(self) -> Iterator[T]:
        return iter(self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def pop(self, number: int) -> T:
        return self._open.pop(number)

    def drain(self) -> Iterator[T]:
        """Close everything, yielding what was open."""
        while self._open:
            yield self._open.popitem()[1]


class Lookups:
    """How many times the kernel was handed each inode; at zero it knows it no more."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, ino: int) -> None:
        self._counts[ino] = self._counts.get(ino, 0) + 1

    def forget(self, ino: int, times: int) -> bool:
        """Count down; True when the kernel no longer knows the inode."""
        left = self._counts.get(ino, 0) - times
        if left > 0:
            self._counts[ino] = left
            return False
        self._counts.pop(ino, None)
        return True

    def __contains__(self, ino: int) -> bool:
        return ino in self._counts

    def known(self) -> list[int]:
        """The inodes that the kernel knows now."""
        return list(self._counts)
