"""What all commands have in common."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from ibpfs.depot.wire.digests import Checksum, framed_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """`timeout`: whole seconds without progress, 0 = the depot's idle limit.

    `carries_data`: bytes follow the line; `ready_first`: the depot answers twice, the first time with `Ready`;
    `closes_if_refused`: what follows the line would be read as commands.
    """

    carries_data: ClassVar[bool] = False
    ready_first: ClassVar[bool] = False
    closes_if_refused: ClassVar[bool] = False
    version: int = 1
    timeout: int = 0


class _Framed(Protocol):
    @property
    def length(self) -> int: ...
    @property
    def checksum(self) -> Checksum | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrying(Command):
    """`length` bytes follow the line; `checksum`: with digests between them."""

    carries_data: ClassVar[bool] = True
    ready_first: ClassVar[bool] = True
    closes_if_refused: ClassVar[bool] = True

    @property
    def wire_length(self: _Framed) -> int:
        return framed_length(self.checksum, self.length)


def is_permanent(version: int, duration: int) -> bool:
    return duration == (0 if version == 0 else -1)
