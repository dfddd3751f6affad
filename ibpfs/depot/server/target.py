"""What a key opens: an allocation, or the window of it that an alias shows."""

from dataclasses import dataclass

from ibpfs.depot.server.allocation import Allocation
from ibpfs.depot.wire.errors import ErrorCode, error_for


@dataclass(frozen=True, slots=True)
class Target:
    """Offsets given to it count from the window's beginning."""

    allocation: Allocation
    alias: Allocation | None

    @property
    def start(self) -> int:
        """Where in the allocation the window begins."""
        return self.alias.window[0] if self.alias is not None else 0

    @property
    def max_size(self) -> int:
        if self.alias is None:
            return self.allocation.max_size
        offset, length = self.alias.window
        rest = max(0, self.allocation.max_size - offset)
        return min(length, rest) if length else rest

    @property
    def size(self) -> int:
        if self.alias is None:
            return self.allocation.size
        return min(max(0, self.allocation.size - self.start), self.max_size)

    @property
    def gone(self) -> bool:
        return self.allocation.gone or (self.alias is not None and self.alias.gone)

    def require_writable(self) -> None:
        if self.gone:
            raise error_for(ErrorCode.CAP_NOT_FOUND)
        if self.allocation.read_only or (self.alias is not None and self.alias.read_only):
            raise error_for(ErrorCode.CAP_NOT_WRITE)
