"""Sealing what a batch carries. Short runs of one file that lie apart go into one slice, one behind the other.

As compaction would do it later. 256 random writes are then one slice, not as many: sealing one takes 7 us, and its row
dirties a page of its own in the index of slice ids, which are random.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ibpfs.cache.dirty import DirtyFile, Flight
from ibpfs.cache.sealer import Sealer
from ibpfs.exnode_store.sealing import Buffer, SliceForm

#: File bytes of such a slice; a longer run has one of its own.
_MOST = 1024 * 1024
_SHORT = 64 * 1024

Run: TypeAlias = tuple[DirtyFile, Flight, Buffer]


@dataclass(frozen=True, slots=True)
class SealedRun:
    """Where a run begins in its slice, and the slice in what is appended."""

    file: DirtyFile
    flight: Flight
    form: SliceForm
    digest: bytes
    base: int
    at: int


@dataclass
class SealedBatch:
    runs: list[SealedRun] = field(default_factory=list)
    pieces: list[Buffer] = field(default_factory=list)
    length: int = 0


def seal_runs(sealer: Sealer, runs: Sequence[Run], *, bundled: bool) -> SealedBatch:
    """`bundled`: not where the spool has to find the bytes of a slice again, by where they lie in the file."""
    sealed = SealedBatch()
    for bundle in _bundles(runs) if bundled else ([run] for run in runs):
        data = bundle[0][2] if len(bundle) == 1 else b"".join([data for _, _, data in bundle])
        form = sealer.form(len(data))
        pieces = sealer.seal(form, data)
        check = sealer.digest(pieces)
        base = 0
        for file, flight, part in bundle:
            sealed.runs.append(SealedRun(file, flight, form, check, base, sealed.length))
            base += len(part)
        sealed.pieces += pieces
        sealed.length += form.stored_length
    return sealed


def _bundles(runs: Sequence[Run]) -> Iterator[list[Run]]:
    bundle: list[Run] = []
    size = 0
    for run in runs:
        length = len(run[2])
        if bundle and (run[0] is not bundle[0][0] or length > _SHORT or size + length > _MOST):
            yield bundle
            bundle, size = [], 0
        bundle.append(run)
        size += length
        if length > _SHORT:
            size = _MOST
    if bundle:
        yield bundle
