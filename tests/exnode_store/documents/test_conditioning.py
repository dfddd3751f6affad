"""The end-to-end functions against a plain reading of their descriptions, written the other way round."""

import hashlib
import zlib
from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from ibpfs.exnode_store.documents.conditioning import (
    BadConditioning,
    WrongChecksum,
    add_checksums,
    checksum_function,
    checksum_length,
    clear_block,
    des_string_to_key,
    stored_span,
    undo,
)
from ibpfs.exnode_store.documents.exnode import Function, Mapping, Metadata
from ibpfs.exnode_store.documents.notation import read

from .shapes import SAMPLES

AES = "3900e700de00ed00a20091005600e400"
IV = bytes(range(100, 116))
ENDS = st.tuples(st.integers(0, 200), st.integers(0, 200))


def checksum(block: bytes) -> bytes:
    return hashlib.md5(block).hexdigest().encode() + b":" + block


def xor(block: bytes) -> bytes:
    return bytes(byte ^ ord("p") if at % 2 == 0 else byte for at, byte in enumerate(block))


def xor4(data: bytes) -> bytes:
    return bytes(byte ^ b"abcd"[at % 4] for at, byte in enumerate(data))


def des(block: bytes) -> bytes:
    padding = -len(block) % 8
    encryptor = Cipher(TripleDES(des_string_to_key(b"[%e+KI6") * 3), modes.CBC(bytes(8))).encryptor()
    return b"%d:" % padding + encryptor.update(block + b"0" * padding)


def aes(block: bytes) -> bytes:
    encrypt = Cipher(algorithms.AES(bytes.fromhex(AES)), modes.ECB()).encryptor().update
    before, out = IV, [IV]
    for at in range(0, len(block), 16):
        part = block[at : at + 16].ljust(16, b"\0")
        before = encrypt(bytes(a ^ b for a, b in zip(part, before, strict=True)))
        out.append(before)
    rest = len(block) % 16
    if rest and len(block) < 16:
        return IV[:rest] + out[1]
    if rest:
        out[-2:] = [out[-1], out[-2][:rest]]
    return b"".join(out)


def blocks(data: bytes, size: int, one: Callable[[bytes], bytes]) -> bytes:
    return b"".join(one(data[at : at + size]) for at in range(0, len(data), size))


def pack(data: bytes) -> bytes:
    return b"%012d:" % len(data) + zlib.compress(data)


def function(name: str, blocksize: int, key: str = "", inner: Function | None = None) -> Function:
    arguments = (Metadata("blocksize", "integer", blocksize),)
    return Function(name, (*arguments, Metadata("KEY", "string", key)) if key else arguments, (), inner)


#: name, stored bytes per block more than clear ones, key, how a block is made
BLOCKWISE = [
    ("checksum", 33, "", checksum),
    ("xor_encrypt", 0, "`/qKv;p", xor),
    ("des_encrypt", 2, "[%e+KI6", des),
    ("aes_encrypt", 16, AES, aes),
]


@pytest.mark.parametrize(("name", "more", "key", "make"), BLOCKWISE)
@given(data=st.binary(max_size=200), block=st.sampled_from([16, 32, 48, 160]), ends=ENDS)
def test_each_function(
    name: str, more: int, key: str, make: Callable[[bytes], bytes], data: bytes, block: int, ends: tuple[int, int]
) -> None:
    stored = blocks(data, block, make)
    one = function(name, block + more, key)
    assert undo(one, stored) == data
    start, stop = sorted(min(end, len(data)) for end in ends)
    mapping = Mapping(0, len(data), alloc_length=len(stored), clear_block=block, function=one)
    assert clear_block(mapping) == block
    begin, end, at = stored_span(mapping, start, stop)
    assert undo(one, stored[begin:end])[start - at : stop - at] == data[start:stop]


def test_xor_with_a_short_key() -> None:
    data = bytes(range(256)) * 3
    assert undo(function("xor_encrypt", 262144, "abcd"), xor4(data)) == data


@given(st.binary(max_size=500))
def test_all_three_in_a_chain(data: bytes) -> None:
    """As captured: the blocks of the inner function do not line up with those of the outer ones."""
    inner = blocks(data, 64, checksum)
    middle = pack(inner)
    stored = des(middle)
    chain = function("des_encrypt", len(stored), "[%e+KI6", function("zlib_compress", len(middle), "",
                     function("checksum", 97)))  # fmt: skip
    assert undo(chain, stored) == data
    mapping = Mapping(0, len(data), alloc_length=len(stored), clear_block=len(data), function=chain)
    assert stored_span(mapping, 3, 4) == (0, len(stored), 0)


@given(st.binary(max_size=500))
def test_checksum_inside_aes_rounds_up(data: bytes) -> None:
    inner = blocks(data, 64, checksum)  # 97 bytes each
    stored = blocks(inner, 112, aes)
    assert undo(function("aes_encrypt", 128, AES, function("checksum", 97)), stored) == data


def test_lengths_as_captured() -> None:
    for name in ("e_a", "e_e", "e_k", "e_x"):
        for mapping in read((SAMPLES / f"{name}.xnd").read_bytes()).mappings:
            assert clear_block(mapping) == 262144
            assert stored_span(mapping, 0, mapping.length) == (0, mapping.alloc_length, 0)
            first = stored_span(mapping, 0, 1)
            assert mapping.function is not None
            assert first == (0, mapping.function.blocksize, 0)
    for name in ("e_z", "e_kze"):
        assert clear_block(read((SAMPLES / f"{name}.xnd").read_bytes()).mappings[0]) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [  # what libcrypto's DES_string_to_key gives
        (b"r*0X.XV", "4973f2d3f854a80d"),
        (b"[%e+KI6", "5ed3264a0d544fa2"),
        (b"a", "49fe04759262ab76"),
        (b"12345678", "8a626479a1160291"),
        (b"0123456789abcdefgh", "61617040706ec261"),
    ],
)
def test_des_string_to_key(text: bytes, key: str) -> None:
    assert des_string_to_key(text).hex() == key


@given(st.binary(max_size=300), st.integers(1, 100))
def test_checksums_written(data: bytes, block: int) -> None:
    stored = b"".join(add_checksums(data, block))
    assert len(stored) == checksum_length(len(data), block)
    assert stored == blocks(data, block, checksum)
    assert undo(checksum_function(block), stored) == data


def test_a_wrong_checksum_may_be_passed_over() -> None:
    stored = bytearray(checksum(b"hello"))
    stored[0] ^= 1
    with pytest.raises(WrongChecksum):
        undo(checksum_function(), bytes(stored))
    assert undo(checksum_function(), bytes(stored), verify=False) == b"hello"


@pytest.mark.parametrize(
    ("one", "stored"),
    [
        (function("no_such", 5), b"x"),
        (function("checksum", 50), b"short"),
        (function("xor_encrypt", 50, "abc"), b"x"),
        (function("xor_encrypt", 50), b"x"),
        (function("des_encrypt", 50, "k"), b"9:12345678"),
        (function("des_encrypt", 50, "k"), b"1:123"),
        (function("des_encrypt", 50), b"0:12345678"),
        (function("aes_encrypt", 50, AES), b"x" * 15),
        (function("aes_encrypt", 50, "zz"), b"x" * 32),
        (function("zlib_compress", 50), b"000000000009:"),
        (function("zlib_compress", 50), pack(b"hello")[:-1].replace(b"05:", b"09:")),
        (function("zlib_compress", 50), b"000000000001:" + zlib.compress(bytes(1000))),
        (function("zlib_compress", 50), b"999999999999:" + zlib.compress(b"x")),
    ],
)
def test_damage_is_said(one: Function, stored: bytes) -> None:
    with pytest.raises(BadConditioning):
        undo(one, stored)


NAMES = [*(name for name, *_ in BLOCKWISE), "zlib_compress"]


@given(st.binary(max_size=100), st.sampled_from(NAMES), st.integers(1, 60))
def test_any_bytes(stored: bytes, name: str, blocksize: int) -> None:
    with suppress(BadConditioning):
        undo(function(name, blocksize, AES if name == "aes_encrypt" else "1234567"), stored)
