"""Who may do what, by network. Pure; knows no socket."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from ibpfs.depot.wire import events as ev

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Right(Enum):
    ALLOCATE = "allocate"
    DATA = "data"
    ADMIN = "admin"


_ALLOCATE = ev.Allocate | ev.Split | ev.AliasAllocate
_ADMIN = (ev.StatusChange,)
_PUBLIC = (ev.StatusInquire, ev.StatusResources, ev.StatusVersion, ev.StatusStatistics, ev.Unsupported, ev.Malformed)


@dataclass(frozen=True, slots=True)
class Access:
    """Networks that have a right; None = everybody (with the password, where a command needs one). Users of this
    machine's Unix socket have all rights."""

    allocate: tuple[Network, ...] | None = None
    data: tuple[Network, ...] | None = None
    admin: tuple[Network, ...] | None = None

    def permits(self, request: ev.Request, origin: Ip | None) -> bool:
        """`origin` None = over the Unix socket."""
        right = right_for(request)
        if origin is None or right is None:
            return True
        networks: tuple[Network, ...] | None = getattr(self, right.value)
        return networks is None or any(origin in network for network in networks)


def right_for(request: ev.Request) -> Right | None:
    if isinstance(request, _PUBLIC):
        return None
    if isinstance(request, _ADMIN):
        return Right.ADMIN
    return Right.ALLOCATE if isinstance(request, _ALLOCATE) else Right.DATA


def household(ip: Ip) -> Ip:
    """What limits count by: whoever has one IPv6 address has the 2^64 of its network."""
    return IPv6Address(int(ip) >> 64 << 64) if isinstance(ip, IPv6Address) else ip


def plain_ip(text: str) -> Ip:
    """Without a zone, and IPv4 where it is only wrapped into IPv6."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
