"""How much of a block to fetch from a depot that is far away, as a policy. Pure.

The first small read of a block gets just its frames, in one round trip: a whole block takes as long again on a link of
100 Mbit/s, and who reads at random wants nothing else of it. Whoever comes back wants the block.
"""

from collections import OrderedDict

from ibpfs.cache.clean import BLOCK, Key

#: Of a block of 1 MiB, more than this is not worth a second fetch.
SMALL = 256 * 1024
#: Blocks of which a part was fetched, remembered.
_REMEMBERED = 4096
#: How many blocks behind one that is read follow, where those before it were read, too.
_AHEAD = 4


class FirstLooks:
    """Which blocks were looked into once."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Key, None] = OrderedDict()

    def is_enough(self, key: Key, wanted: int, block: int) -> bool:
        """Whether `wanted` bytes of a block of so many are fetched alone. Asked once for each read that is made."""
        if key in self._seen or wanted > SMALL or block <= SMALL:
            self._seen.pop(key, None)
            return False
        self._seen[key] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def take(self, most: int) -> list[Key]:
        """The blocks that were looked into last and not fetched whole; they are forgotten here."""
        return [self._seen.popitem()[0] for _ in range(min(most, len(self._seen)))]

    def clear(self) -> None:
        self._seen.clear()


def following(number: int) -> tuple[int, int]:
    """The bytes of a segment to fetch when block `number` is, and the one before it is here."""
    return (number + 1) * BLOCK, (number + 1 + _AHEAD) * BLOCK
