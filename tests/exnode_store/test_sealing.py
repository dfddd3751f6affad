"""Sealed frames: what was sealed comes back, and nothing else ever does."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.sealing import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    FORMAT,
    FUNCTION_CODES,
    FUNCTIONS,
    HEADER,
    PLAIN_XXH3,
    RAW,
    FrameError,
    SliceForm,
    digest,
    parse_header,
    seal,
    unseal,
    unseal_into,
)

KEY = bytes(range(32))
ORIGIN = bytes(range(100, 116))
SLICE = bytes(range(200, 216))

VERIFIED = sorted(set(FUNCTIONS) - {RAW})
functions = st.sampled_from(VERIFIED)
sealed_functions = pytest.mark.parametrize("function", [AES_256_GCM, CHACHA20_POLY1305])
all_functions = pytest.mark.parametrize("function", VERIFIED)
data_and_frame_size = st.tuples(st.binary(min_size=1, max_size=200), st.integers(1, 64))


def make_form(function: int, length: int, frame_size: int = 16) -> SliceForm:
    return SliceForm(SLICE, ORIGIN, 3, function, frame_size, length)


def open_frames(form: SliceForm, stored: bytes, first: int, behind: int, key: bytes = KEY) -> bytes:
    """As a reader does it: cut the frames and, for the plain function, their checksums out of the stored slice."""
    begin, end = form.stored_span(first, behind)
    checksums = b""
    if form.function == PLAIN_XXH3:
        at, stop = form.checksum_span(first, behind)
        checksums = stored[at:stop]
    clear = b"".join(unseal(form, key, first, stored[begin:end], checksums))
    if form.is_sealed:
        assert open_into(form, stored, first, behind, key) == clear
    return clear


def open_into(form: SliceForm, stored: bytes, first: int, behind: int, key: bytes = KEY) -> bytearray:
    """As a reader of many frames does it."""
    into = bytearray(min(behind * form.frame_size, form.length) - first * form.frame_size)
    spans = [form.stored_span(number, number + 1) for number in range(first, behind)]
    unseal_into(form, key, first, [stored[begin:end] for begin, end in spans], memoryview(into))
    return into


def open_all(form: SliceForm, stored: bytes, key: bytes = KEY) -> bytes:
    return open_frames(form, stored, 0, form.frames, key)


@given(data_and_frame_size)
def test_raw_bytes_are_stored_as_they_are(content: tuple[bytes, int]) -> None:
    clear, frame_size = content
    form = make_form(RAW, len(clear), frame_size)
    assert b"".join(seal(form, b"", clear)) == clear
    assert form.stored_length == len(clear)
    assert form.header() == b""
    for first in range(form.frames):
        assert open_frames(form, clear, first, form.frames, b"") == clear[first * frame_size :]


def test_no_header_says_raw() -> None:
    header = HEADER.pack(b"IBPs", FORMAT, RAW, 0, 16, 1, 10, SLICE)
    with pytest.raises(FrameError, match="not a slice header"):
        parse_header(header, ORIGIN)


@given(functions, data_and_frame_size, st.data())
def test_round_trip(function: int, content: tuple[bytes, int], data: st.DataObject) -> None:
    clear, frame_size = content
    form = make_form(function, len(clear), frame_size)
    stored = b"".join(seal(form, KEY, clear))
    assert len(stored) == form.stored_length
    assert open_all(form, stored) == clear
    start = data.draw(st.integers(0, len(clear) - 1))
    stop = data.draw(st.integers(start + 1, len(clear)))
    first, behind = form.frame_span(start, stop)
    part = open_frames(form, stored, first, behind)
    assert part[start - first * frame_size : stop - first * frame_size] == clear[start:stop]


@given(st.sampled_from(sorted(FUNCTIONS)), data_and_frame_size, st.lists(st.integers(0, 200)))
def test_in_how_many_parts_it_comes_is_all_the_same(
    function: int, content: tuple[bytes, int], cuts: list[int]
) -> None:
    data, frame_size = content
    form = make_form(function, len(data), frame_size)
    places = [0, *sorted(cuts), len(data)]
    parts = [data[start:stop] for start, stop in pairwise(places)]
    assert b"".join(seal(form, KEY, *parts)) == b"".join(seal(form, KEY, data))


@given(functions, data_and_frame_size, st.data())
def test_any_changed_byte_is_noticed(function: int, content: tuple[bytes, int], data: st.DataObject) -> None:
    clear, frame_size = content
    form = make_form(function, len(clear), frame_size)
    stored = bytearray(b"".join(seal(form, KEY, clear)))
    at = data.draw(st.integers(HEADER.size, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FrameError):
        open_all(form, bytes(stored))


@given(functions, data_and_frame_size, st.data())
def test_any_cut_is_noticed(function: int, content: tuple[bytes, int], data: st.DataObject) -> None:
    clear, frame_size = content
    form = make_form(function, len(clear), frame_size)
    stored = b"".join(seal(form, KEY, clear))
    begin, end = form.stored_span(0, form.frames)
    at, stop = form.checksum_span(0, form.frames)
    checksums = stored[at:stop] if function == PLAIN_XXH3 else b""
    kept = data.draw(st.integers(0, end - begin - 1))
    step = frame_size + form.overhead
    if kept and kept % step == 0:  # whole frames: they are as good as before, and the caller sees their number
        frames = unseal(form, KEY, 0, stored[begin : begin + kept], checksums)
        assert b"".join(frames) == clear[: kept // step * frame_size]
        return
    with pytest.raises(FrameError):
        unseal(form, KEY, 0, stored[begin : begin + kept], checksums)


@all_functions
def test_what_is_too_much_is_noticed(function: int) -> None:
    form = make_form(function, 40)
    stored = b"".join(seal(form, KEY, bytes(40)))
    begin, end = form.stored_span(0, 3)
    checksums = stored[slice(*form.checksum_span(0, 3))] if function == PLAIN_XXH3 else b""
    for more in (b"\0", bytes(16), bytes(64)):
        with pytest.raises(FrameError):
            unseal(form, KEY, 0, stored[begin:end] + more, checksums)


@sealed_functions
def test_a_run_opens_whole_or_not_at_all(function: int) -> None:
    form = make_form(function, 40)
    stored = b"".join(seal(form, KEY, bytes(range(40))))
    assert open_into(form, stored, 0, 3) == bytes(range(40))
    for at in (HEADER.size, len(stored) // 2, len(stored) - 1):
        changed = bytearray(stored)
        changed[at] ^= 1
        with pytest.raises(FrameError):
            open_into(form, bytes(changed), 0, 3)
    with pytest.raises(FrameError):
        open_into(form, stored, 0, 3, bytes(32))
    frames = [stored[slice(*form.stored_span(number, number + 1))] for number in range(3)]
    for wrong in (frames[:2], frames[:0], [*frames, frames[2]], [frames[1], frames[0], frames[2]], [*frames[:2], b""]):
        with pytest.raises(FrameError):
            unseal_into(form, KEY, 0, wrong, memoryview(bytearray(40)))
    with pytest.raises(FrameError):
        unseal_into(form, KEY, 0, [*frames[:2], frames[2][:-1]], memoryview(bytearray(40)))


@all_functions
def test_frames_do_not_change_places(function: int) -> None:
    form = make_form(function, 48)
    step = 16 + form.overhead
    stored = b"".join(seal(form, KEY, bytes(48)))[HEADER.size :]
    frames = [stored[at : at + step] for at in range(0, 3 * step, step)]
    checksums = [stored[48 + at : 56 + at] if function == PLAIN_XXH3 else b"" for at in range(0, 24, 8)]
    for number in range(3):
        for place in range(3):
            if number == place:
                assert unseal(form, KEY, place, frames[number], checksums[number]) == [bytes(16)]
                continue
            with pytest.raises(FrameError):
                unseal(form, KEY, place, frames[number], checksums[number])


@all_functions
def test_nothing_opens_as_part_of_another_slice(function: int) -> None:
    form = make_form(function, 48)
    stored = b"".join(seal(form, KEY, bytes(48)))
    others = [
        replace(form, slice_id=bytes(16)),
        replace(form, origin=bytes(16)),
        replace(form, frame_size=24),
        replace(form, length=64),
        replace(form, length=32),
        replace(form, function=AES_256_GCM if function == CHACHA20_POLY1305 else CHACHA20_POLY1305),
    ]
    for other in others:
        begin, end = form.stored_span(0, 3)
        checksums = stored[slice(*form.checksum_span(0, 3))] if function == PLAIN_XXH3 else b""
        with pytest.raises(FrameError):
            unseal(other, KEY, 0, stored[begin:end], checksums)


@sealed_functions
def test_another_key_opens_nothing(function: int) -> None:
    form = make_form(function, 10)
    stored = b"".join(seal(form, KEY, bytes(10)))
    with pytest.raises(FrameError):
        open_all(form, stored, bytes(32))


def test_a_last_frame_is_not_taken_for_a_middle_one() -> None:
    short, long = make_form(AES_256_GCM, 32), make_form(AES_256_GCM, 48)
    stored = b"".join(seal(short, KEY, bytes(32)))
    begin, end = short.stored_span(0, 2)
    with pytest.raises(FrameError):
        unseal(long, KEY, 0, stored[begin:end])


@all_functions
def test_length_and_form_belong_together(function: int) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        seal(make_form(function, 10), KEY, bytes(11))


@sealed_functions
def test_sealed_bytes_do_not_show_the_clear_ones(function: int) -> None:
    marker = b"MARKER-IN-CLEAR!"
    form = make_form(function, 160, 64)
    assert marker not in b"".join(seal(form, KEY, marker * 10))


@given(functions, st.integers(1, 1 << 40), st.integers(1, 1 << 32 - 1), st.integers(0, 1 << 32 - 1))
def test_header_round_trip(function: int, length: int, frame_size: int, epoch: int) -> None:
    form = SliceForm(SLICE, ORIGIN, epoch, function, frame_size, length)
    assert parse_header(form.header() + b"frames", ORIGIN) == form


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(HEADER.size),
        make_form(1, 9).header()[:-1],
        HEADER.pack(b"IBPs", FORMAT + 1, 1, 0, 16, 1, 9, SLICE),
        HEADER.pack(b"IBPs", FORMAT, 99, 0, 16, 1, 9, SLICE),
        HEADER.pack(b"IBPs", FORMAT, 1, 0, 0, 1, 9, SLICE),
        HEADER.pack(b"IBPs", FORMAT, 1, 0, 16, 1, 0, SLICE),
    ],
)
def test_what_is_no_header(raw: bytes) -> None:
    with pytest.raises(FrameError):
        parse_header(raw, ORIGIN)


@given(st.integers(0, (1 << 64) - 1), st.lists(st.binary(max_size=50)))
def test_digest_is_of_the_bytes_not_of_the_pieces(seed: int, pieces: list[bytes]) -> None:
    whole = digest(seed, pieces)
    assert len(whole) == 16
    assert whole == digest(seed, [b"".join(pieces)])
    assert whole != digest(seed ^ 1, pieces)


#: function -> stored bytes of the bytes 0..39 in frames of 16, and their digest under seed 7. Frozen with format 1:
#: when one of these changes, volumes that exist can no longer be read.
KNOWN = {
    1: (
        "494250730101000000000010000000030000000000000028c8c9cacbcccdcecfd0d1d2d3d4d5d6d70ebdb7ddb12985ba"
        "00a1a33e14219f96c7dc39912ef161d150bd1e445a783fcf05c7adef50e1260916374b22f0bb24e87b535cff9cb43719"
        "f1b2ac8b7dc51601e9500c5e906efcf66742b6769cf082b7c3f750044c394ea8",
        "0d2dd8dedc3f9978476fb66dd75bf8a8",
    ),
    2: (
        "494250730102000000000010000000030000000000000028c8c9cacbcccdcecfd0d1d2d3d4d5d6d718b94032a9e3a0d6"
        "1b68566aa34e40281d3f47142804b81acd9ef574921448a7794d6eca251fae6d35686434af09090d56bdb2f59743c11d"
        "5a27b678eb3815816deb92d42e58417363d88c75409935abe5c7bc6662ee65d0",
        "aed11b51672df15395afaab01dcb7d35",
    ),
    3: (
        "494250730103000000000010000000030000000000000028c8c9cacbcccdcecfd0d1d2d3d4d5d6d70001020304050607"
        "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324252627de1524c80a9a0fcb9669b03a9d47fe99"
        "8c39d097daeb1039",
        "421a797032b25ccd7572d1396e61d838",
    ),
}


def test_names_and_codes_are_frozen() -> None:
    assert FUNCTION_CODES == {"aes-256-gcm/1": 1, "chacha20-poly1305/1": 2, "plain-xxh3/1": 3, "none/1": 4}


@pytest.mark.parametrize("function", sorted(KNOWN))
def test_known_answers(function: int) -> None:
    stored, expected = (bytes.fromhex(text) for text in KNOWN[function])
    form = make_form(function, 40)
    assert b"".join(seal(form, KEY, bytes(range(40)))) == stored
    assert open_all(form, stored) == bytes(range(40))
    assert digest(7, [stored]) == expected
