"""The error numbers of IBP and the one table that turns them into exceptions."""

from enum import IntEnum

from ibpfs.errors import IbpfsError


class ErrorCode(IntEnum):
    GENERIC = -1
    SOCK_READ = -2
    SOCK_WRITE = -3
    CAP_NOT_FOUND = -4
    CAP_NOT_WRITE = -5
    CAP_NOT_READ = -6
    CAP_NOT_MANAGE = -7
    INVALID_WRITE_CAP = -8
    INVALID_READ_CAP = -9
    INVALID_MANAGE_CAP = -10
    WRONG_CAP_FORMAT = -11
    CAP_ACCESS_DENIED = -12
    CONNECTION = -13
    FILE_OPEN = -14
    FILE_READ = -15
    FILE_WRITE = -16
    FILE_ACCESS = -17
    FILE_SEEK_ERROR = -18
    WOULD_EXCEED_LIMIT = -19
    WOULD_DAMAGE_DATA = -20
    BAD_FORMAT = -21
    TYPE_NOT_SUPPORTED = -22
    RSRC_UNAVAIL = -23
    INTERNAL = -24
    INVALID_CMD = -25
    WOULD_BLOCK = -26
    PROT_VERS = -27
    LONG_DURATION = -28
    WRONG_PASSWD = -29
    INVALID_PARAMETER = -30
    INV_PAR_HOST = -31
    INV_PAR_PORT = -32
    INV_PAR_ATDR = -33
    INV_PAR_ATRL = -34
    INV_PAR_ATTP = -35
    INV_PAR_SIZE = -36
    INV_PAR_PTR = -37
    ALLOC_FAILED = -38
    TOO_MANY_UNITS = -39
    SET_SOCK_ATTR = -40
    GET_SOCK_ATTR = -41
    CLIENT_TIMEOUT = -42
    UNKNOWN_FUNCTION = -43
    INV_IP_ADDR = -44
    WOULD_EXCEED_POLICY = -45
    SERVER_TIMEOUT = -46
    SERVER_RECOVERING = -47
    CAP_DELETING = -48
    UNKNOWN_RS = -49
    INVALID_RID = -50
    NFU_UNKNOWN = -51
    NFU_DUP_PARA = -52
    QUEUE_FULL = -53
    CRT_AUTH_FAIL = -54
    INVALID_CERT_FILE = -55
    INVALID_PRIVATE_KEY_PASSWD = -56
    INVALID_PRIVATE_KEY_FILE = -57
    AUTHENTICATION_REQ = -58
    AUTHEN_NOT_SUPPORT = -59
    AUTHENTICATION_FAILED = -60
    INVALID_HOST = -61
    CANT_CONNECT = -62
    CHKSUM = -63
    CHKSUM_TYPE = -64
    CHKSUM_BLOCKSIZE = -65
    OUT_OF_SOCKETS = -66


class DepotError(IbpfsError):
    """A depot refused a command; `code` is its answer, never a success."""

    def __init__(self, code: int, text: str = "") -> None:
        self.code = code
        super().__init__(text or f"the depot answered {describe(code)}")


class CapabilityNotFound(DepotError):
    """No such allocation, it has ended, or the key is of another kind."""


class Unreadable(DepotError):
    """The depot knows the allocation, and its disk does not give the bytes, or other ones than were stored."""


class PermissionDenied(DepotError):
    """The capability, the password or the address does not give this right."""


class NoRoom(DepotError):
    """The depot, or the allocation, has no room for so much; also a LOAD beyond the size."""


class LeaseTooLong(DepotError):
    """The depot does not lease for so long; STATUS says how long it does."""


class BadRequest(DepotError):
    """The depot could not make sense of the command or one of its parameters."""


class NotOffered(DepotError):
    """The depot does not offer this command or attribute."""


class DepotBusy(DepotError):
    """Not now: worth another try later."""


class OutOfSockets(DepotBusy):
    """The depot takes no more connections now."""

    def __init__(self, backoff: float) -> None:
        self.backoff = backoff
        super().__init__(ErrorCode.OUT_OF_SOCKETS)


class DepotUnreachable(IbpfsError):
    """No connection, or it broke: the depot may or may not have done what was asked."""


class DepotRefused(DepotUnreachable):
    """Nobody listens at the depot's address: it is known to be down."""


class ProtocolError(IbpfsError):
    """Somebody left the protocol."""


class LocalProtocolError(ProtocolError):
    """We did: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer did; the connection is of no more use."""


_CLASSES: dict[type[DepotError], tuple[int, ...]] = {
    CapabilityNotFound: (-4, -48),
    Unreadable: (-14, -15, -63),
    PermissionDenied: (-5, -6, -7, -8, -9, -10, -12, -17, -29, -44, -54, -58, -59, -60),
    NoRoom: (-19, -23, -36, -38, -39),
    LeaseTooLong: (-28, -45),
    BadRequest: (-11, -18, -20, -21, -25, -27, -30, -31, -32, -33, -34, -35, -37, -50, -61, -64, -65),
    NotOffered: (-22, -43, -49, -51),
    DepotBusy: (-26, -42, -46, -47, -53),
}
_NAMES = {int(code): code.name for code in ErrorCode}
_CLASS_OF_CODE = {code: cls for cls, codes in _CLASSES.items() for code in codes}


def describe(code: int) -> str:
    """`-19 (WOULD_EXCEED_LIMIT)`."""
    return f"{code} ({_NAMES[code]})" if code in _NAMES else f"{code}"


def error_for(code: int, *, backoff: float = 0.0) -> DepotError:
    """The exception for an error number of the wire."""
    if code == ErrorCode.OUT_OF_SOCKETS:
        return OutOfSockets(backoff)
    return _CLASS_OF_CODE.get(code, DepotError)(code)
