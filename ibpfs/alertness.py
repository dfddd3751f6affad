"""Whether to wait awake for what comes soon: a processor of a virtual machine that sleeps takes 40 us to be woken."""

#: That many waits are asleep, at most, before it is tried again whether one awake is worth it.
SPARED = 128
#: Descriptors by which others ask something of this process's event loop: it does not sleep while one of them does.
LISTENED: set[int] = set()
#: Long appends that are under way to depots. Each has something to do again and again, for a short time.
CARRIED: set[object] = set()


class Alertness:
    """Not where it was in vain lately: who is waited for pauses, or wants the processor that we would keep awake, as
    others may. After each wait in vain twice as many are asleep as after the one before.
    """

    def __init__(self) -> None:
        self._asleep = 0  # waits, from now on
        self._next = 1  # and after the next that is in vain

    def is_worth_it(self) -> bool:
        """Asked once before each wait."""
        if not self._asleep:
            return True
        self._asleep -= 1
        return False

    def paid(self) -> None:
        self._next = max(1, self._next // 2)

    def was_in_vain(self) -> None:
        self._asleep = self._next
        self._next = min(2 * self._next, SPARED)
