"""Keys of shares: passphrases are part of them, recipients open what was wrapped for them, costs have limits."""

import pyrage
import pytest

from ibpfs.errors import UsageError
from ibpfs.exnode_store.sharing.share_keys import (
    ARGON2ID,
    PBKDF2,
    BadStretching,
    NoIdentity,
    Stretching,
    record_key,
    unwrap_secret,
    wrap_secret,
)

SECRET = bytes(range(32))
SALT = bytes(16)
CHEAP = [Stretching(PBKDF2, SALT, {"iterations": 10}),
         Stretching(ARGON2ID, SALT, {"iterations": 1, "memory_kib": 64, "lanes": 1})]  # fmt: skip


def test_keys_differ() -> None:
    found = {record_key(SECRET, share, stretched) for share in (b"a" * 10, b"b" * 10) for stretched in (b"", b"x" * 32)}
    assert len(found) == 4


@pytest.mark.parametrize("way", CHEAP)
def test_passphrases(way: Stretching) -> None:
    assert way.stretch("Gr\u00fc\u00dfe") == way.stretch("Gru\u0308\u00dfe")
    assert way.stretch("one") != way.stretch("two")
    assert len(way.stretch("")) == 32


@pytest.mark.parametrize("for_browsers", [True, False])
def test_rows(for_browsers: bool) -> None:
    way = Stretching.make(SALT, for_browsers=for_browsers)
    assert Stretching.from_row(way.as_row()) == way


@pytest.mark.parametrize(
    "change",
    [
        {"name": "md5"}, {"iterations": 0}, {"iterations": -1}, {"iterations": 10**9}, {"iterations": True},
        {"iterations": "9"}, {"salt": ""}, {"salt": "A" * 200}, {"salt": 4}, {"salt": "**"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("for_browsers", [True, False])
def test_unreasonable(change: dict[str, object], for_browsers: bool) -> None:
    with pytest.raises(BadStretching):
        Stretching.from_row({**Stretching.make(SALT, for_browsers=for_browsers).as_row(), **change})


@pytest.mark.parametrize("change", [{"memory_kib": 1 << 40}, {"lanes": 1000}, {"lanes": 16, "memory_kib": 64}])
def test_unreasonable_memory(change: dict[str, int]) -> None:
    with pytest.raises(BadStretching):
        Stretching.from_row({**Stretching.make(SALT, for_browsers=False).as_row(), **change})


@pytest.mark.parametrize("row", [None, [], "x", {}, {"name": []}])
def test_no_row(row: object) -> None:
    with pytest.raises(BadStretching):
        Stretching.from_row(row)


def unasked(_: int) -> str:
    raise AssertionError("no key here has a passphrase")


def test_recipients() -> None:
    one, two, other = (pyrage.x25519.Identity.generate() for _ in range(3))
    wrapped = wrap_secret(SECRET, [str(one.to_public()), str(two.to_public())])
    assert SECRET not in wrapped
    for identity in (one, two):
        text = f"# created today\n# public key: {identity.to_public()}\n{identity}\n".encode()
        assert unwrap_secret(wrapped, [b"nothing here", text], unasked) == SECRET
    with pytest.raises(NoIdentity, match="other recipients"):
        unwrap_secret(wrapped, [str(other).encode()], unasked)
    with pytest.raises(NoIdentity, match="give the file"):
        unwrap_secret(wrapped, [], unasked)
    with pytest.raises(NoIdentity):
        unwrap_secret(b"no age file", [str(one).encode()], unasked)
    with pytest.raises(UsageError, match="damaged"):
        unwrap_secret(wrapped, [str(one).encode()[:-3]], unasked)


def test_ssh_recipients() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    assert unwrap_secret(wrap_secret(SECRET, [f"{public} me@example"]), [private], unasked) == SECRET


PROTECTED = b"""\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBk7OAN2Z
yaV64qX9v+6KZQAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIG8WZaHYblqtr39w
zEFFKxzyYhnT8RRpkD8ZwcwyywRlAAAAkC+GdhqrylQ3bnojTbE8zQ+BEfdqHqgqvU9RVk
ONr1avMPzol1PvtIAJ5OkN7ig/fvKM80nPfzrmQi1Ksa8okmhIo867RtCqmZ4Utf/Oz/ka
LEKmQ4SFn8kG8uuUICtHtxayAk+oKmXbxsdvv+ZkpDxWdukf6g1UpK0SiLOzaXhAOiEjOl
g0bx0DYhsH77uU4Q==
-----END OPENSSH PRIVATE KEY-----
"""


PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG8WZaHYblqtr39wzEFFKxzyYhnT8RRpkD8ZwcwyywRl"


def test_ssh_keys_with_a_passphrase() -> None:
    """It is asked for when no other key opens the link, and not before."""
    one = pyrage.x25519.Identity.generate()
    asked: list[int] = []

    def secret(number: int) -> str:
        asked.append(number)
        return "secret"

    wrapped = wrap_secret(SECRET, [PUBLIC, str(one.to_public())])
    assert unwrap_secret(wrapped, [PROTECTED, str(one).encode()], secret) == SECRET
    assert asked == []
    assert unwrap_secret(wrapped, [b"nothing here", PROTECTED], secret) == SECRET
    assert asked == [1]
    with pytest.raises(NoIdentity, match="passphrase of the ssh key is wrong"):
        unwrap_secret(wrapped, [PROTECTED], lambda _: "another")
    with pytest.raises(NoIdentity, match="other recipients"):
        unwrap_secret(wrap_secret(SECRET, [str(one.to_public())]), [PROTECTED], secret)


@pytest.mark.parametrize("text", ["", "age1", "ssh-ed25519 AAAA", "somebody", "AGE-SECRET-KEY-1"])
def test_no_recipients(text: str) -> None:
    with pytest.raises(UsageError):
        wrap_secret(SECRET, [text])
