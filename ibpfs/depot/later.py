"""Data of a command that are made when its line is on its way already."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, overload

Buffer: TypeAlias = bytes | bytearray | memoryview


class Later(Sequence[Buffer]):
    """`length` bytes that are made, once, when somebody looks at them."""

    def __init__(self, length: int, make: Callable[[], Sequence[Buffer]]) -> None:
        self.length = length
        self._make = make
        self._made: Sequence[Buffer] | None = None

    def made(self) -> Sequence[Buffer]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __len__(self) -> int:
        """Of how many pieces."""
        return len(self.made())

    @overload
    def __getitem__(self, at: int) -> Buffer: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Buffer]: ...
    def __getitem__(self, at: int | slice) -> Buffer | Sequence[Buffer]:
        return self.made()[at]

    def __iter__(self) -> Iterator[Buffer]:
        return iter(self.made())
