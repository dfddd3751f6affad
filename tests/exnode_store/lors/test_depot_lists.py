"""Lists of depots in the three forms people have them."""

import json

import pytest

from ibpfs.depot.address import Address
from ibpfs.errors import UsageError
from ibpfs.exnode_store.lors.depot_lists import order, parse_labels, parse_list

A, B, C = (Address.parse(f"ibp://{name}:6714") for name in "abc")


def test_lines() -> None:
    found = parse_list("# ours\nibp://a:6714 site=home owner=me\n\nDEPOT b 6714\nibp://c # late\nibp://a:6714\n")
    assert [one.address for one in found] == [A, B, C]
    assert found[0].labels == {"site": "home", "owner": "me"}


def test_libdlt() -> None:
    rows = [
        {"accessPoint": "ibp://a:6714", "location": {"state": "TN", "zipcode": ""}},
        {"accessPoint": "ibp://b:6714", "enabled": False},
    ]
    found = parse_list(json.dumps(rows))
    assert [one.address for one in found] == [A]
    assert found[0].labels == {"state": "TN"}
    assert parse_list(json.dumps({"ibp://a:6714": rows[0]})) == found


def test_hints() -> None:
    listed = parse_list("ibp://a\nibp://b state=IN\nibp://c state=tn city=Knoxville\n")
    assert order(listed, {}) == [A, B, C]
    assert order(listed, {"state": "TN"}) == [C, A, B]
    assert order(listed, parse_labels(["city=knoxville", "state=IN"])) == [B, C, A]


@pytest.mark.parametrize("text", ["http://a", "ibp://a x", "[1]", '[{"accessPoint": "x"}]', "[", "DEPOT a b"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(UsageError):
        parse_list(text)
