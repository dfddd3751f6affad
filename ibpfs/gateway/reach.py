"""Which depots a gateway speaks to. Strangers' links name them: it must not become a way into its own network."""

from collections.abc import Sequence

from ibpfs.depot.server.access import Ip
from ibpfs.depot.server.reach import Places, embedded_ipv4

_FIRST_PORT = 1024


def permits(ip: Ip, port: int, allowed: Sequence[Places], *, allowed_only: bool = False) -> bool:
    """What the operator allows; else public addresses alone, and none of the ports on which other services listen."""
    if any(places.holds(ip, port) for places in allowed):
        return True
    if allowed_only:
        return False
    inner = embedded_ipv4(ip)
    public = ip.is_global and not ip.is_multicast and (inner is None or inner.is_global)
    return public and port >= _FIRST_PORT
