"""The five end-to-end functions of LoRS, and our sealed slices: stored bytes back into file bytes; checksum also forth.

Pure. Their ciphers hide and prove nothing by today's measure: they are read because exNodes have them.
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ibpfs.errors import DataError
from ibpfs.exnode_store.documents.exnode import Function, Mapping, Metadata
from ibpfs.exnode_store.documents.sealed import BadSlice, is_sealed_function, open_slice
from ibpfs.exnode_store.sealing import FrameError

CHECKSUM_BLOCK: Final = 262144
_DIGEST: Final = 32  # hexadecimal characters of MD5
_ZLIB_HEAD: Final = 13
#: What must be undone in one piece may be no larger; LoRS' own mappings are a few megabytes.
MAX_WHOLE: Final = 256 * 1024 * 1024

Buffer = bytes | bytearray | memoryview
_Undo = Callable[[bytes, Function], bytes]


class BadConditioning(DataError):
    """Stored bytes are not what the mapping's functions make."""


class WrongChecksum(BadConditioning):
    """An MD5 differs. LoRS built on 64-bit machines writes another digest, so the bytes may be right."""


def checksum_function(block: int = CHECKSUM_BLOCK) -> Function:
    """The one function worth writing."""
    return Function("checksum", (Metadata("blocksize", "integer", block + _DIGEST + 1),))


def checksum_length(length: int, block: int = CHECKSUM_BLOCK) -> int:
    """How many bytes are stored for `length` file bytes."""
    return length + (_DIGEST + 1) * -(-length // block)


def add_checksums(data: Buffer, block: int = CHECKSUM_BLOCK) -> list[bytes | memoryview]:
    """Return the stored bytes, in pieces."""
    view = memoryview(data)
    pieces: list[bytes | memoryview] = []
    for at in range(0, len(view), block):
        part = view[at : at + block]
        pieces += [_md5(part) + b":", part]
    return pieces


def _md5(data: Buffer) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()


# --- undoing


def clear_block(mapping: Mapping) -> int | None:
    """File bytes per block, when blocks can be read and undone alone; None: only all together."""
    chain = mapping.function.chain() if mapping.function else []
    if len(chain) != 1 or chain[0].blocksize is None:
        return None
    stored = chain[0].blocksize
    match chain[0].name:
        case "checksum":
            return stored - _DIGEST - 1 if stored > _DIGEST + 1 else None
        case "aes_encrypt":
            return stored - 16 if stored > 16 else None
        case "xor_encrypt":
            return stored
        case "des_encrypt":  # up to seven characters of padding in every block
            block = mapping.clear_block
            return block if 0 <= stored - 2 - block < 8 and block > 0 and (stored - 2) % 8 == 0 else None
    return None


def stored_span(mapping: Mapping, start: int, stop: int) -> tuple[int, int, int]:
    """Which stored bytes [a, b) of the mapping must be undone for its file bytes [start, stop), both from its own
    beginning; and at which file byte what comes out begins."""
    if not mapping.conditioned:
        return start, stop, start
    block = clear_block(mapping)
    if block is None:
        return 0, mapping.alloc_length, 0
    assert mapping.function is not None
    stored = mapping.function.chain()[0].blocksize or 0
    first, behind = start // block, -(-stop // block)
    end = mapping.alloc_length if behind * block >= mapping.length else min(behind * stored, mapping.alloc_length)
    return min(first * stored, end), end, first * block


def undo(function: Function, stored: bytes, *, verify: bool = True) -> bytes:
    """Return file bytes. Raises BadConditioning, or WrongChecksum if `verify`."""
    data = stored
    for one in function.chain():
        if one.name == "checksum":
            data = _by_blocks(data, one, _undo_checksum if verify else _drop_checksum)
        elif one.name == "zlib_compress":
            data = _undo_zlib(data)
        elif one.name in _CIPHERS:
            data = _by_blocks(data, one, _CIPHERS[one.name])
        elif is_sealed_function(one.name):
            data = _undo_sealed(data, one)
        else:
            raise BadConditioning(f"the end-to-end function {one.name[:40]!a} is not known")
    return data


def _undo_sealed(data: bytes, function: Function) -> bytes:
    try:
        return open_slice(function, data)
    except (BadSlice, FrameError) as error:
        raise BadConditioning(str(error)) from None


def _by_blocks(data: bytes, function: Function, undo_block: _Undo) -> bytes:
    size = function.blocksize or max(len(data), 1)
    return b"".join(undo_block(data[at : at + size], function) for at in range(0, len(data), size))


def _undo_checksum(block: bytes, function: Function) -> bytes:
    clear = _drop_checksum(block, function)
    if _md5(clear) != block[:_DIGEST]:
        raise WrongChecksum("the MD5 of a block differs from its end-to-end checksum")
    return clear


def _drop_checksum(block: bytes, _: Function) -> bytes:
    if block[_DIGEST : _DIGEST + 1] != b":":
        raise BadConditioning("a block has no end-to-end checksum where one should be")
    return block[_DIGEST + 1 :]


def _undo_zlib(data: bytes) -> bytes:
    digits = data[: _ZLIB_HEAD - 1]
    if len(data) < _ZLIB_HEAD or not digits.isdigit() or data[_ZLIB_HEAD - 1 : _ZLIB_HEAD] != b":":
        raise BadConditioning("compressed bytes do not begin with their length")
    length = int(digits)
    if length > MAX_WHOLE:
        raise BadConditioning(f"compressed bytes that give {length} are more than is undone at once")
    try:
        clear = zlib.decompressobj().decompress(data[_ZLIB_HEAD:], length + 1)
    except zlib.error as error:
        raise BadConditioning(f"compressed bytes are damaged ({error})") from None
    if len(clear) != length:
        raise BadConditioning("compressed bytes give another length than they announce")
    return clear


def _undo_xor(block: bytes, function: Function) -> bytes:
    key = (function.key or "").encode("utf-8", "replace")
    if len(key) == 4:
        pad = key * -(-len(block) // 4)
        return _xor(block, pad[: len(block)])
    if len(key) != 7:
        raise BadConditioning("xor_encrypt: its key is not of 4 or 7 characters")
    pad = bytes([key[6], 0]) * -(-len(block) // 2)
    return _xor(block, pad[: len(block)])


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(len(left), "little")


def _undo_des(block: bytes, function: Function) -> bytes:
    if len(block) < 2 or block[1:2] != b":" or block[0] not in b"01234567" or (len(block) - 2) % 8:
        raise BadConditioning("des_encrypt: a block does not begin with its padding's length")
    if not function.key:
        raise BadConditioning("des_encrypt: no key")
    padded = _des_cbc(des_string_to_key(function.key.encode("utf-8", "replace")), bytes(8)).decryptor()
    clear = padded.update(block[2:])
    return clear[: len(clear) - int(block[:1])]


def _des_cbc(key: bytes, iv: bytes) -> Cipher[modes.CBC]:
    return Cipher(TripleDES(key * 3), modes.CBC(iv))  # three times the same key is single DES


def des_string_to_key(text: bytes) -> bytes:
    """The key that Kerberos 4 makes of a password: bits folded fan-wise, then a CBC checksum of the text."""
    folded = bytearray(8)
    for at, byte in enumerate(text):
        if at % 16 < 8:
            folded[at % 8] ^= byte << 1 & 0xFF
        else:
            folded[7 - at % 8] ^= int(f"{byte:08b}"[::-1], 2)
    key = _odd_parity(folded)
    encryptor = _des_cbc(key, key).encryptor()
    checksum = encryptor.update(text + bytes(-len(text) % 8))[-8:] if text else key
    return _odd_parity(checksum)


def _odd_parity(key: Buffer) -> bytes:
    return bytes(byte & 0xFE | (bin(byte & 0xFE).count("1") + 1) % 2 for byte in bytes(key))


def _undo_aes(block: bytes, function: Function) -> bytes:
    length = len(block) - 16
    key = _aes_key(function)
    if length < 0:
        raise BadConditioning("aes_encrypt: a block is shorter than its initial vector")
    if length < 16:  # the cipher block lies over the end of the vector
        return _xor(_aes_ecb(key, block[length:])[:length], block[:length])
    vector, body = block[:16], block[16:]
    rest = length % 16
    if rest:
        body = _unsteal(key, body, rest)
    clear = Cipher(algorithms.AES(key), modes.CBC(vector)).decryptor().update(body)
    return clear[:length]


def _unsteal(key: bytes, body: bytes, rest: int) -> bytes:
    """Return whole cipher blocks in their order, the stolen end restored."""
    last, cut = body[-16 - rest : -rest], body[-rest:]
    before = cut + _aes_ecb(key, last)[rest:]
    return body[: -16 - rest] + before + last


def _aes_key(function: Function) -> bytes:
    try:
        key = bytes.fromhex(function.key or "")
    except ValueError:
        key = b""
    if len(key) != 16:
        raise BadConditioning("aes_encrypt: its key is not of 32 hexadecimal digits")
    return key


def _aes_ecb(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).decryptor().update(block)


_CIPHERS: Final[dict[str, _Undo]] = {
    "xor_encrypt": _undo_xor,
    "des_encrypt": _undo_des,
    "aes_encrypt": _undo_aes,
}
