"""Sealing of new slices of one volume."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ibpfs.exnode_store.keys import VolumeKeys
from ibpfs.exnode_store.sealing import SEALED, Buffer, Sealing, SliceForm, digest, seal


@dataclass(frozen=True)
class Sealer:
    """What is needed to seal new slices of this volume."""

    keys: VolumeKeys
    volume: bytes
    function: int
    frame_size: int
    digest_seed: int

    def form(self, length: int) -> SliceForm:
        return SliceForm(os.urandom(16), self.volume, self.keys.epoch, self.function, self.frame_size, length)

    def seal(self, form: SliceForm, *parts: Buffer) -> list[bytes | memoryview]:
        """Return the stored bytes, in pieces. One slice id for one content: frame numbers are nonces."""
        return seal(form, self.keys.slice_key(form.epoch, form.slice_id), *parts)

    def begin(self, length: int) -> Sealing | None:
        """A slice that is sealed as its bytes come; None where none is sealed."""
        if self.function not in SEALED:
            return None
        form = self.form(length)
        return Sealing(form, self.keys.slice_key(form.epoch, form.slice_id), self.digest_seed)

    def digest(self, pieces: Sequence[Buffer]) -> bytes:
        return digest(self.digest_seed, pieces)

    def would_be(self, form: SliceForm, expected: bytes, data: Buffer) -> bool:
        """Whether `data`, sealed as this slice, has the digest of what was stored. What is sealed here goes nowhere."""
        return len(data) == form.length and self.digest(self.seal(form, data)) == expected
