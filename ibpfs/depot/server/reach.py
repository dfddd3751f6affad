"""Where third-party calls may go. Pure; knows no socket.

Copies may go to any address but link-local, multicast and the depot's own admin ports, to loopback only if the depot
itself listens there. Raw bytes move only to and from the address the request came from. The operator's lists come
first: what is denied stays denied, what is allowed needs no default.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_network

from ibpfs.depot.server.access import Ip, Network, plain_ip
from ibpfs.errors import UsageError


class Purpose(Enum):
    COPY = "copy"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Places:
    """A network and a range of ports, both ends included."""

    network: Network
    first: int = 1
    last: int = 65535

    @classmethod
    def parse(cls, text: str) -> "Places":
        """`NET`, `NET:PORT` or `NET:PORT-PORT`; an IPv6 network in brackets, its length inside or behind them."""
        network, ports = _split(text)
        first, _, last = ports.partition("-")
        try:
            places = cls(ip_network(network, strict=False), int(first or 1), int(last or first or 65535))
        except ValueError:
            raise UsageError(f"{text!r} is not NETWORK[:PORT[-PORT]]") from None
        if not 0 < places.first <= places.last < 65536:
            raise UsageError(f"{text!r}: ports are 1 to 65535, the lower one first")
        return places

    def holds(self, ip: Ip, port: int) -> bool:
        return self.first <= port <= self.last and ip in self.network


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        network, _, rest = text[1:].partition("]")
        length, _, ports = rest.partition(":")
        return network + length, ports
    if text.count(":") > 1:
        return text, ""
    network, _, ports = text.partition(":")
    return network, ports


@dataclass(frozen=True, slots=True)
class Reach:
    """`own`: addresses on which this depot listens; `admin_ports`: its ports that are not for IBP."""

    on_loopback: bool = True
    own: frozenset[Ip] = frozenset()
    admin_ports: frozenset[int] = frozenset()
    copy_allowed: tuple[Places, ...] = ()
    copy_denied: tuple[Places, ...] = ()
    raw_allowed: tuple[Places, ...] = ()
    raw_denied: tuple[Places, ...] = ()

    def permits(self, purpose: Purpose, ip: Ip, port: int, origin: Ip | None) -> bool:
        """`origin`: of the request; None = the Unix socket."""
        copying = purpose is Purpose.COPY
        denied, allowed = (
            (self.copy_denied, self.copy_allowed) if copying else (self.raw_denied, self.raw_allowed)
        )
        if any(places.holds(ip, port) for places in denied) or self._is_admin_port(ip, port):
            return False
        if any(places.holds(ip, port) for places in allowed):
            return True
        if not copying:
            return ip.is_loopback if origin is None else ip == origin
        if is_local(ip):
            return self.on_loopback
        return not (ip.is_link_local or ip.is_multicast or ip == _BROADCAST)

    def _is_admin_port(self, ip: Ip, port: int) -> bool:
        return port in self.admin_ports and (is_local(ip) or ip in self.own)


_BROADCAST = IPv4Address("255.255.255.255")


def is_local(ip: Ip) -> bool:
    """Connecting to the unspecified address reaches this machine too."""
    return ip.is_loopback or ip.is_unspecified


def embedded_ipv4(ip: Ip) -> Ip | None:
    """The IPv4 address to which translators carry an IPv6 one."""
    if not isinstance(ip, IPv6Address):
        return None
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


_NAT64 = ip_network("64:ff9b::/96")
__all__ = ["Places", "Purpose", "Reach", "embedded_ipv4", "is_local", "plain_ip"]
