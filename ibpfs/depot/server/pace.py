"""How slow a peer may be, and how much memory slow peers may hold. Pure; knows no clock and no socket."""

ALWAYS = 64 * 1024  # so much one connection may hold, whatever the others do


class Pace:
    """Of one exchange: it may be stuck for its limit once, and then has to move `least` bytes a second (0 = any)."""

    def __init__(self, least: float) -> None:
        self._least = least
        self.begin()

    def begin(self) -> None:
        self._waited = 0.0
        self._moved = 0

    def patience(self, limit: float) -> float:
        """Seconds for which to wait now; not more than `limit`."""
        if not self._least:
            return limit
        return max(0.0, min(limit, limit - self._waited + self._moved / self._least))

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def moved(self, count: int) -> None:
        self._moved += count


class InFlight:
    """Bytes that wait in memory for peers: beginnings of lines that came, replies and data that have not gone yet."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def change(self, before: int, after: int) -> bool:
        """One connection holds `after` bytes, not `before`. False when that is too much beside all others."""
        self.held += after - before
        return self.held <= self.limit or after <= ALWAYS
