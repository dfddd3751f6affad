"""A secret in N shares of which any K give it back, and fewer say nothing (Shamir, over GF(2^8) with 0x11b).

Each byte of the secret is the constant term of a random polynomial of degree K - 1; share x holds its values at x.
Written here because no such library is both small and kept; its tests are properties.
"""

import os
from collections.abc import Mapping, Sequence

#: So many different points there are beside 0, where the secret is.
MOST_SHARES = 255

_EXP = [0] * 510
_LOG = [0] * 256


def _make_tables() -> None:
    value = 1
    for power in range(255):
        _EXP[power] = _EXP[power + 255] = value
        _LOG[value] = power
        value ^= value << 1  # times 3, which generates the field
        if value & 0x100:
            value ^= 0x11B


_make_tables()


def _times(a: int, b: int) -> int:
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def _over(a: int, b: int) -> int:
    return _EXP[_LOG[a] - _LOG[b] + 255] if a else 0


def split(secret: bytes, needed: int, count: int) -> dict[int, bytes]:
    """The shares by their points, 1 to `count`; any `needed` of them give the secret back."""
    if not 1 <= needed <= count <= MOST_SHARES:
        raise ValueError("cannot be split so")
    coefficients = [secret, *(os.urandom(len(secret)) for _ in range(needed - 1))]
    return {point: bytes(_value(column, point) for column in zip(*coefficients, strict=True))
            for point in range(1, count + 1)}  # fmt: skip


def _value(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = _times(value, point) ^ coefficient
    return value


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from exactly as many shares as are needed; from others something else."""
    weights = {point: _weight(point, list(shares)) for point in shares}
    length = len(next(iter(shares.values())))
    secret = bytearray(length)
    for point, share in shares.items():
        for at, byte in enumerate(share):
            secret[at] ^= _times(weights[point], byte)
    return bytes(secret)


def _weight(point: int, points: Sequence[int]) -> int:
    """Lagrange's, at 0."""
    weight = 1
    for other in points:
        if other != point:
            weight = _times(weight, _over(other, other ^ point))
    return weight
