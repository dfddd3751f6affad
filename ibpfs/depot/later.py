"""Data of a command that are made when its line is on its way already, or lie in a file and need not be made at all."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

from ibpfs.errors import DataError

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


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of an open file that nobody changes any more."""

    descriptor: int
    offset: int
    length: int

    def read(self, start: int = 0) -> bytes:
        """From its byte `start` on. DataError when they are not all there."""
        try:
            data = os.pread(self.descriptor, self.length - start, self.offset + start)
        except OSError as error:
            raise DataError(f"a file that is to be sent cannot be read: {error.strerror}") from error
        if len(data) < self.length - start:
            raise DataError("a file that is to be sent is shorter than it was")
        return data


class Filed(Later):
    """Data that lie in files, or partly so; read where somebody wants to see them. DataError when they cannot be."""

    def __init__(self, parts: Sequence[Buffer | FilePart]) -> None:
        self.parts = parts
        length = sum(part.length if isinstance(part, FilePart) else len(part) for part in parts)
        super().__init__(length, lambda: [part.read() if isinstance(part, FilePart) else part for part in parts])
