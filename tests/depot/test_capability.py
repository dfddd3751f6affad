"""Capabilities: text and back, and never a secret where it may be read."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.depot.capability import BadCapability, Capability, CapabilityKind, CapabilitySet, Key

SECRET = "1#bIJHzedg9wSlWvpsYKXJPS2wPtS3bdIl"
TEXT = f"ibp://127.0.0.1:16714/{SECRET}/3862277/READ"

token = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=1)
host = st.sampled_from(["localhost", "depot-1.example.org", "10.0.0.1", "::1", "fe80::1%eth0"])


def test_parse_takes_a_real_depots_capability_apart() -> None:
    cap = Capability.parse(TEXT)
    assert cap == Capability("127.0.0.1", 16714, SECRET, "3862277", CapabilityKind.READ)
    assert cap.wire_key == Key(SECRET, "3862277")


@given(host, st.integers(1, 65535), token, token, st.sampled_from(CapabilityKind))
def test_render_and_parse_are_inverse(host: str, port: int, key: str, type_key: str, kind: CapabilityKind) -> None:
    cap = Capability(host, port, key, type_key, kind)
    assert Capability.parse(cap.render()) == cap


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ibp://",
        f"http://h:1/{SECRET}/1/READ",
        f"ibp://h/{SECRET}/1/READ",
        f"ibp://h:0/{SECRET}/1/READ",
        f"ibp://h:65536/{SECRET}/1/READ",
        f"ibp://h:99999999999999999999999/{SECRET}/1/READ",
        f"ibp://h:1/{SECRET}/READ",
        f"ibp://h:1/{SECRET}/1/DELETE",
        f"ibp://h:1/{SECRET}/1/READ/x",
        "ibp://h:1//1/READ",
        "ibp://h:1/a b/1/READ",
        "ibp://h:1/a\n/1/READ",
        "ibp://h:\u0661/a/1/READ",
        "ibp://h h:1/a/1/READ",
    ],
)
def test_what_is_no_capability_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(BadCapability) as refusal:
        Capability.parse(text)
    assert SECRET not in str(refusal.value)


def test_only_render_gives_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    cap = Capability.parse(TEXT)
    caps = CapabilitySet(cap, cap, cap)
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("%s %r %s", cap, caps, cap.wire_key)
    for text in (repr(cap), str(cap), repr(caps), str(caps), repr(cap.wire_key), caplog.text):
        assert SECRET not in text
        assert cap.label in text
    assert len(cap.label) == 8
    assert SECRET in cap.render()


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "a\n", "\x00", "ä", "x" * 1024])
def test_a_key_that_could_break_a_command_line_cannot_exist(bad: str) -> None:
    with pytest.raises(BadCapability):
        Key(bad, "1")
    with pytest.raises(BadCapability):
        Key("k", bad)
