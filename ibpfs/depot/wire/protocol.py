"""Numbers and limits of the protocol: opcodes, sub-commands, attributes."""

from enum import IntEnum
from typing import Final

MAX_LINE: Final = 256 * 1024
MAX_STATUS_TEXT: Final = 64 * 1024
MAX_VERSION_LINES: Final = 1000
MAX_PIPELINED: Final = 256  # commands a server reads ahead of its replies
MAX_VECTOR: Final = 4096  # elements
MAX_NUMBER: Final = 2**63 - 1
PERMANENT_SECONDS: Final = 315_360_000  # what PROBE reports for a lease without an end; old clients stand it
DEFAULT_PASSWORD: Final = "ibp"
ANY_RESOURCE: Final = "0"


class Opcode(IntEnum):
    NOP = -1
    ALLOCATE = 1
    STORE = 2
    DELIVER = 3
    STATUS = 4
    SEND = 5
    MCOPY = 6
    REMOTE_STORE = 7
    LOAD = 8
    MANAGE = 9
    SEND_BU = 10
    CT_COPY = 11
    NFU = 12
    WRITE = 13
    ALIAS_ALLOCATE = 14
    ALIAS_MANAGE = 15
    RENAME = 16
    PHOEBUS_SEND = 17
    SPLIT_ALLOCATE = 18
    MERGE_ALLOCATE = 19
    PUSH = 20
    PULL = 21
    PUSH_CHKSUM = 22
    PULL_CHKSUM = 23
    LOAD_CHKSUM = 24
    SEND_CHKSUM = 25
    PHOEBUS_SEND_CHKSUM = 26
    WRITE_CHKSUM = 27
    STORE_CHKSUM = 28
    ALLOCATE_CHKSUM = 29
    SPLIT_ALLOCATE_CHKSUM = 30
    GET_CHKSUM = 31
    VALIDATE_CHKSUM = 32
    VEC_WRITE = 33
    VEC_WRITE_CHKSUM = 34
    VEC_READ = 35
    VEC_READ_CHKSUM = 36
    OPEN = 1001  # of our own, for processes of one machine


# Bytes follow these lines, so a refusal must close: what is under way must never be read as commands.
CARRY_DATA: Final = frozenset(
    {
        Opcode.STORE,
        Opcode.WRITE,
        Opcode.WRITE_CHKSUM,
        Opcode.STORE_CHKSUM,
        Opcode.VEC_WRITE,
        Opcode.VEC_WRITE_CHKSUM,
    }
)

class ManageCommand(IntEnum):
    PROBE = 40
    INCR = 41
    DECR = 42
    CHNG = 43
    CONFIG = 44
    TRUNCATE = 45


class StatusCommand(IntEnum):
    INQUIRE = 1
    CHANGE = 2
    RESOURCES = 3
    STATISTICS = 4
    VERSION = 5


class Reliability(IntEnum):
    """VOLATILE may be revoked at any time (the wire's soft), STABLE lives until its lease ends (hard)."""

    VOLATILE = 1
    STABLE = 2


class AllocationKind(IntEnum):
    """BUFFER holds what was stored last; a FIFO makes writers wait for room, a circular queue forgets its oldest."""

    BYTE_ARRAY = 1
    BUFFER = 2
    FIFO = 3
    CIRCULAR_QUEUE = 4

    @property
    def is_queue(self) -> bool:
        """Loads take the bytes away."""
        return self >= AllocationKind.FIFO
