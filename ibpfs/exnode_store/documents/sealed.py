"""Slices that a volume sealed, as functions of a mapping: what ibpfs writes for ibpfs alone.

The function's name is that of the mapping function (`aes-256-gcm/1`, ...); its arguments are the slice's form, and its
own key where that was asked for.
"""

from dataclasses import replace
from typing import Final

from ibpfs.exnode_store.documents.exnode import ExNode, Function, Mapping, Metadata
from ibpfs.exnode_store.sealing import FUNCTION_CODES, FUNCTIONS, HEADER, MAX_SLICE, ForeignSlice, SliceForm, unseal

#: File metadata: bytes that no mapping has are zeros.
HOLES: Final = Metadata("ibpfs_holes", "string", "zeros")
_SEALED: Final = {
    name for name, code in FUNCTION_CODES.items() if SliceForm(bytes(16), bytes(16), 1, code, 1, 1).is_sealed
}
_NUMBERS: Final = ("epoch", "frame_size", "slice_length", "slice_offset")
_LARGEST_NUMBER: Final = 2**32


class BadSlice(ValueError):
    """The arguments of a sealed mapping make no sense."""


def sealed_function(slice_: ForeignSlice) -> Function:
    form = slice_.form
    numbers = zip(_NUMBERS, (form.epoch, form.frame_size, form.length, slice_.offset), strict=True)
    arguments = [
        Metadata("slice", "string", form.slice_id.hex()),
        Metadata("volume", "string", form.origin.hex()),
        *(Metadata(name, "integer", value) for name, value in numbers),
    ]
    if slice_.key is not None:
        arguments.append(Metadata("KEY", "string", slice_.key.hex()))
    return Function(FUNCTIONS[form.function], tuple(arguments))


def slice_of(mapping: Mapping) -> ForeignSlice | None:
    """What a volume sealed; None when none did. Raises BadSlice."""
    chain = mapping.function.chain() if mapping.function is not None else []
    if not is_sealed(mapping):
        return None
    slice_ = read_function(chain[0])
    if len(chain) > 1:
        raise BadSlice("a sealed slice that is conditioned once more")
    if slice_.offset + mapping.length > slice_.form.length or mapping.alloc_length != slice_.form.stored_length:
        raise BadSlice("a part of a slice that is longer than the slice, or stored in fewer bytes")
    return slice_


def read_function(function: Function) -> ForeignSlice:
    """Raises BadSlice."""
    try:
        slice_id, origin = (bytes.fromhex(str(function.argument(name))) for name in ("slice", "volume"))
        key = None if function.key is None else bytes.fromhex(function.key)
    except ValueError:
        raise BadSlice("its slice, volume or key is not hexadecimal") from None
    epoch, frame_size, length, offset = (function.argument(name) for name in _NUMBERS)
    numbers = [one for one in (epoch, frame_size, length, offset) if isinstance(one, int)]
    if len(numbers) < len(_NUMBERS) or not all(0 <= one < _LARGEST_NUMBER for one in numbers):
        raise BadSlice("a number of its slice is missing or makes no sense")
    if len(slice_id) != 16 or len(origin) != 16 or (key is not None and len(key) != 32):
        raise BadSlice("its slice, volume or key is of another length")
    epoch, frame_size, length, offset = numbers
    if not 0 < length <= MAX_SLICE or not 0 < frame_size <= MAX_SLICE or offset >= length:
        raise BadSlice("a slice is at most 4 MiB long")
    code = FUNCTION_CODES.get(function.name)
    if code is None:
        raise BadSlice("its function is not known")
    return ForeignSlice(SliceForm(slice_id, origin, epoch, code, frame_size, length), offset, key)


def open_slice(function: Function, stored: bytes) -> bytes:
    """Return the slice's file bytes from `slice_offset` on. Raises BadSlice, FrameError."""
    slice_ = read_function(function)
    if slice_.key is None:
        raise BadSlice("sealed, and the exNode carries no key: ibpfs import it on a volume that has it, or have it"
                       " exported again with --with-keys")  # fmt: skip
    form = slice_.form
    if len(stored) != form.stored_length or stored[: form.header_size] != form.header():
        raise BadSlice("the stored bytes are not those of its slice")
    frames = unseal(form, slice_.key, 0, memoryview(stored)[HEADER.size :])
    return b"".join(frames)[slice_.offset :]


def is_sealed(mapping: Mapping) -> bool:
    return mapping.function is not None and any(one.name in _SEALED for one in mapping.function.chain())


def is_sealed_function(name: str) -> bool:
    return name in _SEALED


def with_holes(exnode: ExNode) -> ExNode:
    return exnode if holes_are_zeros(exnode) else replace(exnode, metadata=(*exnode.metadata, HOLES))


def holes_are_zeros(exnode: ExNode) -> bool:
    return any(one.name == HOLES.name and one.value == HOLES.value for one in exnode.metadata)
