"""The IBP wire protocol without I/O: one `Connection` for client and depot, events, error numbers.

Knows no socket, no clock and no file.
"""

from ibpfs.depot.wire.connection import Connection, Role
from ibpfs.depot.wire.digests import Checksum, DigestType
from ibpfs.depot.wire.errors import (
    BadRequest,
    CapabilityNotFound,
    DepotBusy,
    DepotError,
    DepotRefused,
    DepotUnreachable,
    ErrorCode,
    LeaseTooLong,
    LocalProtocolError,
    NoRoom,
    NotOffered,
    OutOfSockets,
    PermissionDenied,
    ProtocolError,
    RemoteProtocolError,
    Unreadable,
    describe,
    error_for,
)
from ibpfs.depot.wire.events import NEED_DATA, PAUSED
from ibpfs.depot.wire.protocol import PERMANENT_SECONDS, AllocationKind, Opcode, Reliability

__all__ = [
    "NEED_DATA",
    "PAUSED",
    "PERMANENT_SECONDS",
    "AllocationKind",
    "BadRequest",
    "CapabilityNotFound",
    "Checksum",
    "Connection",
    "DepotBusy",
    "DepotError",
    "DepotRefused",
    "DepotUnreachable",
    "DigestType",
    "ErrorCode",
    "LeaseTooLong",
    "LocalProtocolError",
    "NoRoom",
    "NotOffered",
    "Opcode",
    "OutOfSockets",
    "PermissionDenied",
    "ProtocolError",
    "Reliability",
    "RemoteProtocolError",
    "Role",
    "Unreadable",
    "describe",
    "error_for",
]
