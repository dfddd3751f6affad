"""Slices that are sealed while they are written: a stream is sealed once, for the spool and for the depots.

Such a slice is as long as slices get, and written one run behind the other, in whole frames. Where it does not come to
that, or it is cut or overwritten before it flies, or flies in vain, its bytes are sealed anew, as another slice.
"""

from ibpfs.cache.dirty import Begun, DirtyFile, Flight
from ibpfs.cache.sealer import Sealer
from ibpfs.cache.spool_file import Record
from ibpfs.exnode_store.extents import Piece
from ibpfs.exnode_store.sealing import MAX_SLICE, Sealing

#: With a shorter write none is begun: of small files there are many, and none becomes a stream.
_LEAST = 128 * 1024


def begun_by(sealer: Sealer, file: DirtyFile, offset: int, length: int) -> Sealing | None:
    """What `length` bytes that are about to be written at `offset` are the next frames of, if of any."""
    if length % sealer.frame_size or not length:
        return None
    if file.begun is not None:
        start, sealing = file.begun.start, file.begun.sealing
        if sealing.is_usable and offset == start + sealing.length and sealing.length + length <= sealing.form.length:
            return sealing
        file.begun = None
    begun = sealer.begin(MAX_SLICE) if _LEAST <= length <= MAX_SLICE else None
    if begun is not None:
        file.begun = Begun(offset, begun)
    return begun


def sealed_by(flight: Flight) -> Sealing | None:
    """The slice that is just what flies, as it was sealed, once; None when that is to be sealed now."""
    whole = None
    for sealing in {_sealing(piece) for piece in flight.pieces}:
        if sealing is not None:
            whole = sealing if sealing.is_usable and sealing.is_whole and _is_whole(flight, sealing) else whole
            sealing.is_usable = False
    return whole


def _sealing(piece: Piece[Record]) -> Sealing | None:
    frames = piece.source.frames
    return None if frames is None else frames.sealing


def _is_whole(flight: Flight, sealing: Sealing) -> bool:
    """Whether the flight's bytes are those of the slice: all its records, and nothing cut off or overwritten."""
    at = 0
    for piece in flight.pieces:
        frames, length = piece.source.frames, piece.stop - piece.start
        if frames is None or frames.sealing is not sealing or frames.first * frames.form.frame_size != at:
            return False
        if piece.offset or length != piece.source.length:
            return False
        at += length
    return at == sealing.form.length
