"""Putting what a link points to into a directory: nothing is overwritten, nothing lands outside, everything resumes.

A file is fetched as `.NAME.part`, a directory built as `.NAME.part/tree`; each gets its name when all of it is there
and verified.
"""

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from ibpfs.errors import DataError, NameExists, NoSpace, UsageError
from ibpfs.exnode_store.lors.outputs import refuse_existing
from ibpfs.exnode_store.lors.partial import PartialFile, part_of
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots, in_parallel
from ibpfs.exnode_store.sharing.bundles import Bundles
from ibpfs.exnode_store.sharing.contents import DIRECTORY, FILE, Content, Entry, SharedPart
from ibpfs.exnode_store.sharing.fetching import Unavailable
from ibpfs.exnode_store.sharing.symlinks import make_links
from ibpfs.quantities import format_size

#: Zeros of sparse files that are hashed, in all; frames and their places are verified in any case.
_MOST_ZEROS: Final = 64 * 1024**3
#: Small files of a directory that are fetched side by side.
_FILES_AT_ONCE: Final = 8


class Receiver:
    """One run of `ibpfs get`. After an error, what was fetched stays for the next one.

    `left_out`: symbolic links that the file system cannot hold.
    """

    def __init__(self, depots: Depots, content: Content, advance: Advance, streams: int) -> None:
        self._depots = depots
        self._content = content
        self._streams = streams
        self._advance = advance
        self._counter = Counter(0, _nothing)
        self._bundles = Bundles(depots, content, ())
        self.left_out: list[str] = []
        self._zeros = _MOST_ZEROS

    async def receive(self, target: Path, *, overwrite: bool, resume: bool) -> int:
        """Make `target` the file or directory; return how many bytes an earlier run had left.

        Raises NameExists, NoSpace, Unavailable, DataError.
        """
        if self._content.is_directory:
            return await self._tree(target, resume=resume)
        refuse_existing(target, overwrite)
        entry = self._content.entries[0]
        self._bundles = Bundles(self._depots, self._content, entry.parts)
        return await self._file(entry, target, overwrite=overwrite, resume=resume)

    # A file

    async def _file(
        self, entry: Entry, path: Path, *, part: Path | None = None, overwrite: bool = False, resume: bool = True
    ) -> int:
        partial = PartialFile(path, identity(self._content, entry), entry.size, resume=resume, part=part)
        try:
            before = partial.done_bytes
            if part is None:
                _need_room(path.parent, sum(part.stop - part.start for part in entry.parts) - before)
                self._counter = Counter(_stored(entry), self._advance, before)
            await self._fetch(entry, partial)
            await trio.to_thread.run_sync(self._verify, entry, partial)
            partial.touch(entry.mtime_ns, executable=bool(entry.mode & stat.S_IXUSR))
            partial.finish(overwrite=overwrite)
        finally:
            partial.close()
            if not partial.done_bytes:
                partial.discard()
        return before

    def _verify(self, entry: Entry, partial: PartialFile) -> None:
        zeros = entry.size - _stored(entry)
        if entry.sha256 is None or zeros > self._zeros:
            return
        self._zeros -= zeros
        if partial.sha256() != entry.sha256:
            raise DataError("what was fetched is not what was shared: its SHA-256 differs (get it anew with --restart)")

    async def _fetch(self, entry: Entry, partial: PartialFile) -> None:
        missing: list[Unavailable] = []
        writing = trio.Lock()

        def wanted() -> Iterator[tuple[int, SharedPart]]:
            for turn, part in enumerate(entry.parts):
                if len(missing) > 2 * self._streams:
                    return
                if not partial.has(part.start, part.stop):
                    yield turn, part

        async def one(job: tuple[int, SharedPart]) -> None:
            turn, part = job
            try:
                data = await self._bundles.fetch(part, turn)
            except Unavailable as error:  # what can be had is fetched all the same, for the next time
                missing.append(error)
                return
            async with writing:
                await trio.to_thread.run_sync(partial.write, part.start, data)
            self._counter.add(len(data))

        await in_parallel(wanted(), one, self._streams)
        if missing:
            raise missing[0]

    # A directory

    async def _tree(self, target: Path, *, resume: bool) -> int:
        _refuse(target)
        place = part_of(target)
        root = place / "tree"
        _own_directory(place, self._content, resume=resume)
        root.mkdir(exist_ok=True)
        files = [entry for entry in self._content.entries if entry.kind == FILE]
        for entry in self._content.entries:
            if entry.kind == DIRECTORY:
                root.joinpath(*entry.path).mkdir(exist_ok=True)
        before = {entry.path for entry in files if root.joinpath(*entry.path).exists()}
        total = sum(map(_stored, files))
        had = sum(_stored(entry) for entry in files if entry.path in before)
        _need_room(place, total - had)
        self._counter = Counter(total, self._advance, had)
        wanted = (part for entry in files if entry.path not in before for part in entry.parts)
        self._bundles = Bundles(self._depots, self._content, wanted)

        async def one(job: tuple[int, Entry]) -> None:
            number, entry = job
            # Not beside it: what is shared may have any name, also that of a part.
            await self._file(entry, root.joinpath(*entry.path), part=place / str(number))

        await in_parallel(
            [job for job in enumerate(files) if job[1].path not in before], one, min(self._streams, _FILES_AT_ONCE)
        )
        await trio.to_thread.run_sync(self._finish_tree, root, target, place)
        return had

    def _finish_tree(self, root: Path, target: Path, place: Path) -> None:
        entries = self._content.entries
        self.left_out = make_links(root, entries)
        expected = len(entries) - 1 - len(self.left_out)
        if sum(len(names) + len(files) for _, names, files in os.walk(root)) != expected:
            raise DataError(f"{target}: two of its names are one on this file system; nothing was made")
        for entry in reversed(entries):
            if entry.kind == DIRECTORY:
                with suppress(OverflowError, OSError):
                    os.utime(root.joinpath(*entry.path), ns=(time.time_ns(), entry.mtime_ns))
        _refuse(target)
        root.rename(target)
        shutil.rmtree(place)


def identity(content: Content, entry: Entry) -> str:
    """A digest of what is fetched; it tells no key."""
    digest = hashlib.sha256(f"{entry.size}\n".encode())
    for part in entry.parts:
        form = content.slices[part.slice].form
        digest.update(f"{part.start} {part.stop} {part.offset} {form.slice_id.hex()}\n".encode())
    return digest.hexdigest()


def file_name(content: Content) -> str:
    """The name that the sender gave, if it is safe to use without a question. UsageError."""
    name = content.name
    if name.startswith((".", "-")) or not name.isprintable():
        raise UsageError("the link gives no usable name; say one with -o")
    return name


def _refuse(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise NameExists(f"{target}: exists already; say another name with -o")


def _stored(entry: Entry) -> int:
    return sum(part.stop - part.start for part in entry.parts)


def _need_room(directory: Path, size: int) -> None:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if size > free:
        raise NoSpace(f"{directory}: {format_size(size)} are to come, there is room for {format_size(free)}")


def _own_directory(place: Path, content: Content, *, resume: bool) -> None:
    """Where a directory is built: ours alone, and of this very share."""
    digest = hashlib.sha256()
    for entry in content.entries:
        what = f"{entry.path} {entry.kind} {entry.target} {identity(content, entry)}\n"
        digest.update(what.encode("utf-8", "surrogateescape"))
    label = place / "share"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UsageError(f"{place}: is in the way")
    if not label.is_file() and any(place.iterdir()):
        raise UsageError(f"{place}: no download made it; it is in the way of this one")
    if not resume or not label.is_file() or label.read_text("ascii") != digest.hexdigest():
        shutil.rmtree(place)
        place.mkdir(mode=0o700)
        label.write_text(digest.hexdigest(), encoding="ascii")


def _nothing(_: int, __: int, ___: str) -> None:
    """Until there is something to count."""
