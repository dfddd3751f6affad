"""Key slots, epochs, and what is derived from them."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ibpfs.errors import VolumeError, WrongKey
from ibpfs.exnode_store import keys as keys_module
from ibpfs.exnode_store.keys import VolumeKeys, derive, make_keys, make_slot, open_slots, wrap_epochs

UUID = bytes(range(16))
SECRET = bytes(range(32))


@pytest.fixture(autouse=True)
def cheap_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost stands in the slot, so that a cheap slot opens like a dear one."""
    monkeypatch.setattr(keys_module, "ARGON2", {"iterations": 1, "memory_kib": 64, "lanes": 1})


@pytest.mark.parametrize("kind", ["keyfile", "recovery", "passphrase"])
def test_a_slot_opens_with_its_secret_alone(kind: str) -> None:
    keys = make_keys()
    slots, epochs = [make_slot(kind, SECRET, keys, UUID)], wrap_epochs(keys, UUID)
    assert open_slots(slots, epochs, kind, SECRET, UUID) == keys
    with pytest.raises(WrongKey):
        open_slots(slots, epochs, kind, SECRET[:-1] + b"x", UUID)
    with pytest.raises(WrongKey):
        open_slots(slots, epochs, kind, SECRET, bytes(16))
    for other in {"keyfile", "recovery", "passphrase"} - {kind}:
        with pytest.raises(WrongKey):
            open_slots(slots, epochs, other, SECRET, UUID)


def test_several_slots_open_the_same_keys() -> None:
    keys = make_keys()
    epochs = wrap_epochs(keys, UUID)
    slots = [make_slot(kind, secret, keys, UUID) for kind, secret in (("keyfile", SECRET), ("passphrase", b"one"))]
    slots.append(make_slot("passphrase", b"two", keys, UUID))
    for kind, secret in (("keyfile", SECRET), ("passphrase", b"one"), ("passphrase", b"two")):
        assert open_slots(slots, epochs, kind, secret, UUID) == keys
    with pytest.raises(WrongKey):
        open_slots([], epochs, "keyfile", SECRET, UUID)


def test_a_slot_of_one_kind_does_not_pass_for_another() -> None:
    keys = make_keys()
    slot = make_slot("keyfile", SECRET, keys, UUID) | {"kind": "recovery"}
    with pytest.raises(WrongKey):
        open_slots([slot], wrap_epochs(keys, UUID), "recovery", SECRET, UUID)


def test_epochs() -> None:
    keys = VolumeKeys({1: bytes(32), 2: SECRET}, SECRET)
    assert keys.epoch == 2
    assert open_slots([make_slot("keyfile", b"s", keys, UUID)], wrap_epochs(keys, UUID), "keyfile", b"s", UUID) == keys
    assert keys.slice_key(1, UUID) != keys.slice_key(2, UUID)
    assert keys.spool_key(1) != keys.spool_key(2)
    with pytest.raises(VolumeError, match="no key of epoch 3"):
        keys.slice_key(3, UUID)


def test_epochs_do_not_change_places() -> None:
    keys = VolumeKeys({1: bytes(32), 2: SECRET}, SECRET)
    slots, (first, second) = [make_slot("keyfile", b"s", keys, UUID)], wrap_epochs(keys, UUID)
    swapped = [{"epoch": 1, "wrapped": second["wrapped"]}, {"epoch": 2, "wrapped": first["wrapped"]}]
    with pytest.raises(VolumeError) as caught:
        open_slots(slots, swapped, "keyfile", b"s", UUID)
    assert not isinstance(caught.value, WrongKey)


@pytest.mark.parametrize("damage", [{"wrapped": "zz"}, {"wrapped": ""}, {"salt": "0"}, {"salt": None}])
def test_a_damaged_slot_is_said_to_be_damaged(damage: dict[str, str]) -> None:
    keys = make_keys()
    slot = make_slot("keyfile", SECRET, keys, UUID) | damage
    with pytest.raises(VolumeError, match="damaged"):
        open_slots([slot], wrap_epochs(keys, UUID), "keyfile", SECRET, UUID)


def test_a_slot_cannot_ask_for_the_whole_machine() -> None:
    keys = make_keys()
    slot = make_slot("passphrase", SECRET, keys, UUID) | {"memory_kib": 1 << 40}
    with pytest.raises(VolumeError, match="unreasonable"):
        open_slots([slot], wrap_epochs(keys, UUID), "passphrase", SECRET, UUID)


def test_keys_are_random_and_do_not_show() -> None:
    one, two = make_keys(), make_keys()
    assert one.epochs[1] != two.epochs[1]
    assert one.master != two.master
    assert repr(one) == "VolumeKeys()"


def test_slices_have_keys_of_their_own() -> None:
    keys = make_keys()
    derived = {keys.slice_key(1, bytes([number] * 16)) for number in range(50)} | {keys.spool_key(1)}
    assert len(derived) == 51
    assert {len(key) for key in derived} == {32}


def test_known_answers() -> None:
    """Frozen with format 1: HKDF-SHA256, no salt, info 'ibpfs/1 ' + purpose."""
    keys = VolumeKeys({1: SECRET}, bytes(32))
    assert derive(SECRET, b"x").hex() == "250acbf6218d2e7e0ec83c5ea75acf788f91ba9bfec7e4704c316415a0cc3fab"
    assert keys.slice_key(1, UUID).hex() == "560155cc87431fcf38dd198a13826b01e1c12f72617ea36b01fd523336958903"
    assert keys.spool_key(1).hex() == "f18efad26c394150353d62d01a92f44c7c2590364da281b619bbfc7b39d03988"


@pytest.mark.parametrize("length", [1, 31, 32, 33, 80])
def test_derived_as_the_library_does(length: int) -> None:
    theirs = HKDF(hashes.SHA256(), length, None, b"ibpfs/1 purpose").derive(SECRET)
    assert derive(SECRET, b"purpose", length) == theirs
