"""Where a gateway goes, and where strangers cannot send it."""

from ipaddress import ip_address

import pytest

from ibpfs.depot.server.reach import Places
from ibpfs.gateway.reach import permits

ALLOWED = [Places.parse("10.1.0.0/16:6714"), Places.parse("[fd00::]/8")]


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111"])
def test_public_addresses(ip: str) -> None:
    assert permits(ip_address(ip), 6714, [])
    assert not permits(ip_address(ip), 25, [])


@pytest.mark.parametrize(
    "ip",
    ["127.0.0.1", "0.0.0.0", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "64:ff9b::a00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_nothing_private(ip: str) -> None:
    assert not permits(ip_address(ip), 6714, [])


def test_a_gateway_for_own_depots_alone() -> None:
    assert permits(ip_address("10.1.2.3"), 6714, ALLOWED, allowed_only=True)
    assert not permits(ip_address("8.8.8.8"), 6714, ALLOWED, allowed_only=True)


def test_what_the_operator_allows() -> None:
    assert permits(ip_address("10.1.2.3"), 6714, ALLOWED)
    assert not permits(ip_address("10.1.2.3"), 6715, ALLOWED)
    assert permits(ip_address("fd00::1"), 80, ALLOWED)
