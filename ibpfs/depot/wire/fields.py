"""The fields of a line: blanks between them, numbers in decimal and within 64 bits."""

from ibpfs.depot.capability import BadCapability, CapabilityKind, Key
from ibpfs.depot.wire.digests import MAX_BLOCK, Checksum, DigestType
from ibpfs.depot.wire.errors import ErrorCode
from ibpfs.depot.wire.protocol import MAX_NUMBER, AllocationKind, Reliability


class BadField(Exception):
    """Internal to the codec: a field does not parse; `code` is the answer to it."""

    def __init__(self, code: int = ErrorCode.BAD_FORMAT) -> None:
        self.code = int(code)
        super().__init__(code)


def integer(token: str) -> int:
    """Bounded before it is converted: a peer must not make us parse a megabyte of digits."""
    digits = token[1:] if token[:1] in ("-", "+") else token
    if not digits.isdigit() or len(digits) > 19:
        raise BadField
    value = int(token)
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise BadField
    return value


def count(token: str) -> int:
    """A number that may not be negative."""
    value = integer(token)
    if value < 0:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return value


def positive(token: str) -> int:
    value = integer(token)
    if value <= 0:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return value


def seconds(tokens: list[str], at: int) -> int:
    """The timeout, which may be missing (0), have a fraction (cut), or be negative by mistake (0)."""
    if at >= len(tokens):
        return 0
    return max(0, integer(tokens[at].partition(".")[0] or "0"))


def key(tokens: list[str], at: int) -> Key:
    try:
        return Key(token(tokens, at), token(tokens, at + 1))
    except BadCapability:
        raise BadField(ErrorCode.CAP_NOT_FOUND) from None


def token(tokens: list[str], at: int) -> str:
    try:
        return tokens[at]
    except IndexError:
        raise BadField from None


def duration(text: str, version: int) -> int:
    """Version 0 asks for permanence with 0, version 1 with -1; but -1 in a CHNG leaves the lease as it is."""
    value = integer(text)
    if value < -1 or (version and value == 0):
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return value


def reliability(text: str) -> Reliability:
    try:
        return Reliability(integer(text))
    except ValueError:
        raise BadField(ErrorCode.BAD_FORMAT) from None


def allocation_kind(text: str) -> AllocationKind:
    try:
        return AllocationKind(integer(text))
    except ValueError:
        raise BadField(ErrorCode.INVALID_PARAMETER) from None


def capability_kind(text: str) -> CapabilityKind:
    try:
        return CapabilityKind(integer(text))
    except ValueError:
        raise BadField(ErrorCode.INVALID_PARAMETER) from None


def checksum(tokens: list[str]) -> Checksum:
    """The first two fields."""
    number, block_size = integer(token(tokens, 0)), integer(token(tokens, 1))
    try:
        kind = DigestType(number)
    except ValueError:
        raise BadField(ErrorCode.CHKSUM_TYPE) from None
    if not 1 <= block_size <= MAX_BLOCK:
        raise BadField(ErrorCode.CHKSUM_BLOCKSIZE)
    return Checksum(kind, block_size)
