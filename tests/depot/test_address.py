"""Addresses of depots."""

import pytest

from ibpfs.depot.address import Address, BadAddress
from ibpfs.depot.capability import Capability


@pytest.mark.parametrize(
    ("text", "address", "back"),
    [
        ("ibp://127.0.0.1:16714", Address("127.0.0.1", 16714), None),
        ("ibp://depot.example.org", Address("depot.example.org", 6714), "ibp://depot.example.org:6714"),
        ("ibp://[::1]:7000/", Address("::1", 7000), "ibp://[::1]:7000"),
        ("ibp://[::1]", Address("::1", 6714), "ibp://[::1]:6714"),
        ("ibps://[::1]:7000", Address("::1", 7000, secure=True), None),
        ("unix:/run/depot.sock", Address(path="/run/depot.sock"), None),
    ],
)
def test_parse_and_text(text: str, address: Address, back: str | None) -> None:
    assert Address.parse(text) == address
    assert str(address) == (back or text)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "h:1", "ibp://", "ibp://h:0", "ibp://h:x", "ibps://h:0", "unix:rel", "unix:", "ibp://a b:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress):
        Address.parse(text)


def test_a_capability_names_its_depot() -> None:
    assert Address.of(Capability.parse("ibp://h:1/k/2/READ")) == Address("h", 1)
