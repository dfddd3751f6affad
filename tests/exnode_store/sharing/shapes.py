"""Locators, links and contents as hypothesis draws them."""

from hypothesis import strategies as st

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm
from ibpfs.exnode_store.sharing.contents import (
    DIRECTORY,
    FILE,
    LINK,
    Content,
    Copy,
    Entry,
    Run,
    Sender,
    SharedPart,
    SharedSlice,
    check_name,
    check_target,
)
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place

hosts = st.sampled_from(["depot.example", "10.0.0.1", "fe80::1", "a-b.c"])
addresses = st.builds(Address, hosts, st.integers(1, 65535), secure=st.booleans())
_KEYS = st.text("abcXYZ019+-#", min_size=1, max_size=40)
keys = st.builds(Key, _KEYS, st.integers(0, 2**31).map(str))
places = st.builds(Place, addresses, keys)
locators = st.builds(
    Locator,
    st.binary(min_size=10, max_size=10),
    st.integers(0, 2**36),
    st.lists(places, min_size=1, max_size=3).map(tuple),
)
fragments = st.one_of(
    st.builds(Fragment, st.binary(min_size=32, max_size=32), passphrase=st.booleans()),
    st.builds(Fragment, wrapped=st.binary(min_size=1, max_size=400), passphrase=st.booleans()),
)
links = st.builds(Link, locators, fragments)


def is_name(text: str) -> bool:
    try:
        check_name(text)
    except ValueError:
        return False
    return True


def fits(path: tuple[str, ...], target: str) -> bool:
    try:
        check_target(path, target)
    except ValueError:
        return False
    return True


names = st.text(min_size=1, max_size=20).filter(is_name)
targets = st.lists(names, min_size=1, max_size=3).map("/".join)
runs = st.builds(Run, st.integers(10_000, 10**12),
                 st.lists(st.builds(Copy, addresses, keys, st.integers(0, 10**9)), min_size=1, max_size=3).map(tuple),
                 )  # fmt: skip


def form(length: int, frame_size: int = 64) -> SliceForm:
    return SliceForm(bytes(16), bytes(16), 1, AES_256_GCM, frame_size, length)


def slice_form(slice_id: bytes, length: int, frame_size: int) -> SliceForm:
    return SliceForm(slice_id, bytes(16), 1, AES_256_GCM, frame_size, length)


@st.composite
def contents(draw: st.DrawFn) -> Content:
    found = draw(st.lists(runs, min_size=1, max_size=3))
    lengths = draw(st.lists(st.integers(1, 2000), min_size=1, max_size=4))
    slices = tuple(
        SharedSlice(form(length), draw(st.integers(0, len(found) - 1)), draw(st.integers(0, 100)),
                    draw(st.binary(min_size=32, max_size=32))) for length in lengths
    )  # fmt: skip
    directory = draw(st.booleans())
    paths = [(name,) for name in draw(st.lists(names, unique=True, max_size=3))] if directory else [()]
    entries = [Entry((), DIRECTORY, 0, draw(st.integers(-(10**18), 10**18)), 0o755, None)] if directory else []
    entries += [_file(path, slices) for path in paths]
    if directory:
        links = draw(st.dictionaries(names.map(lambda name: (name,)), targets, max_size=2))
        entries += [Entry(path, LINK, 0, 7, 0o777, None, target=to) for path, to in links.items() if path not in paths]
    sender = Sender(draw(st.binary(min_size=32, max_size=32)), bytes(64))
    note = draw(st.text(max_size=40).filter(lambda text: text.isprintable()))
    return Content(draw(names), note, 1, 2, sender, tuple(found), slices, tuple(entries))


def _file(path: tuple[str, ...], slices: tuple[SharedSlice, ...]) -> Entry:
    parts, at = [], 0
    for number, one in enumerate(slices):
        parts.append(SharedPart(at, at + one.form.length, number, 0))
        at += one.form.length + 7  # a hole behind each
    return Entry(path, FILE, at, 5, 0o644, bytes(32), tuple(parts))
