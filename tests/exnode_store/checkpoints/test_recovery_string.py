"""Recovery strings: what goes in comes out, and a slip of the pen is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.errors import UsageError
from ibpfs.exnode_store.checkpoints.commits import Place
from ibpfs.exnode_store.checkpoints.recovery_string import (
    Recovery,
    dump_recovery,
    format_text,
    load_recovery,
    parse_recovery,
)
from ibpfs.exnode_store.creation import dump_short_recovery

secrets = st.binary(min_size=24, max_size=24)
keys = st.text("abcXYZ09+-#", min_size=1, max_size=60)
there = st.builds(
    lambda port, scheme, key, kind: Place(f"{scheme}://depot.example:{port}", False, f"{key}/{kind}"),
    st.integers(1, 65535), st.sampled_from(["ibp", "ibps"]), keys, keys,
)  # fmt: skip
here = st.builds(lambda key, kind: Place("", True, f"{key}/{kind}"), keys, keys)


@given(secrets)
def test_strings_of_the_first_release(secret: bytes) -> None:
    text = format_text(dump_short_recovery(secret))
    assert parse_recovery(f" {text.lower().replace('-', ' ')} ") == Recovery(secret)


@given(secrets, st.lists(there | here, max_size=4))
def test_strings_with_places(secret: bytes, places: list[Place]) -> None:
    recovery = Recovery(secret, places)
    text = format_text(dump_recovery(recovery))
    assert parse_recovery(text.lower().replace("-", "\n")) == recovery
    assert secret.hex() not in repr(recovery)
    assert not any(place.read_key in repr(recovery) for place in places)


@given(secrets, st.lists(there, min_size=1, max_size=3), st.data())
def test_a_slip_of_the_pen(secret: bytes, places: list[Place], data: st.DataObject) -> None:
    raw = bytearray(dump_recovery(Recovery(secret, places)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UsageError):
        load_recovery(bytes(raw))


@pytest.mark.parametrize("wrong", ["", "AAAA", "ABCD-" * 10, "not base 32 at all?", "\N{SNOWMAN}", "A" * 100_000])
def test_what_is_no_recovery_string(wrong: str) -> None:
    with pytest.raises(UsageError, match="not a recovery string"):
        parse_recovery(wrong)
