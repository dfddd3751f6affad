"""Slices that are sealed while they are written: a stream is sealed once, for the spool and for the depots.

Such a slice is as long as slices get, and written one run behind the other, in whole frames. Where it does not come to
that, or it is cut or overwritten before it flies, its bytes are sealed anew, as another slice.
"""

from weakref import WeakSet

from ibpfs.cache.dirty import Begun, DirtyFile, Flight
from ibpfs.cache.sealer import Sealer
from ibpfs.cache.spool_file import Record
from ibpfs.exnode_store.extents import Piece
from ibpfs.exnode_store.sealing import MAX_SLICE, Sealing

#: With a shorter write none is begun: of small files there are many, and none becomes a stream.
_LEAST = 128 * 1024
#: Each takes MAX_SLICE bytes of memory.
_MOST = 8


class BegunSlices:
    """Of one volume. Those that may fly as they were sealed, once: after a flight in vain, they are sealed anew."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._held = WeakSet[Sealing]()  # by their files, and by the records that somebody needs

    def __len__(self) -> int:
        return len(self._held)

    def next(self, file: DirtyFile, offset: int, length: int) -> Sealing | None:
        """What `length` bytes that are about to be written at `offset` are the next frames of, if of any."""
        if length % self._sealer.frame_size or not length:
            return None
        if file.begun is not None:
            start, sealing = file.begun.start, file.begun.sealing
            if offset == start + sealing.length and sealing.length + length <= MAX_SLICE and sealing in self._held:
                return sealing
            if not sealing.is_whole:
                self._let_go(sealing)
            file.begun = None
        if not _LEAST <= length <= MAX_SLICE or len(self._held) >= _MOST:
            return None
        begun = self._sealer.begin(MAX_SLICE)
        if begun is not None:
            self._held.add(begun)
            file.begun = Begun(offset, begun)
        return begun

    def take(self, flight: Flight) -> Sealing | None:
        """The slice that is just what flies, as it was sealed; None when it is to be sealed now."""
        if not self._held:
            return None
        touched = {_sealing(piece) for piece in flight.pieces}
        for sealing in [one for one in self._held if one in touched]:
            if sealing.is_whole and _is_whole(flight, sealing):
                self._held.discard(sealing)
                return sealing
            self._let_go(sealing)
        return None

    def _let_go(self, sealing: Sealing) -> None:
        self._held.discard(sealing)
        sealing.take()


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
