"""Random operations on files of a mount, each file beside the bytes that it should have."""

import mmap
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 1_200_000
_NAMES = 12
_HANDLES = 8
_KEPT = 60

Step = Callable[[], None]


@dataclass(eq=False)
class Body:
    """What a file should be, whatever its names."""

    data: bytearray = field(default_factory=bytearray)
    names: set[str] = field(default_factory=set)
    mapped: bool = False  # pages were changed through mmap, which only an fsync makes the mount's

    def put(self, start: int, data: bytes) -> None:
        if start > len(self.data):
            self.data.extend(bytes(start - len(self.data)))
        self.data[start : start + len(data)] = data

    def cut(self, size: int) -> None:
        self.data[size:] = bytes(max(0, size - len(self.data)))


@dataclass(eq=False)
class Handle:
    """An open file on the mount."""

    descriptor: int
    body: Body
    flags: int


class Exerciser:
    """Does one random operation after the other below `place`; AssertionError when a file is not what it should be.

    What it does depends on the dice alone.
    """

    def __init__(self, place: Path, dice: random.Random) -> None:
        self.place, self.dice = place, dice
        self.files: dict[str, Body] = {}
        self.handles: list[Handle] = []
        self.done = 0
        self._log: list[str] = []
        self._steps: list[Step] = []
        self._weights: list[int] = []
        for step, weight in (
            (self.open_one, 8), (self.close_one, 7), (self.write, 30), (self.append, 6), (self.read, 20),
            (self.truncate, 6), (self.map, 8), (self.copy, 3), (self.sync, 1), (self.rename, 3), (self.link, 2),
            (self.unlink, 2), (self.look, 4),
        ):  # fmt: skip
            self._steps.append(step)
            self._weights.append(weight)

    def step(self) -> None:
        (chosen,) = self.dice.choices(self._steps, self._weights)
        if not self.handles:
            chosen = self.open_one
        try:
            chosen()
        except OSError as error:
            raise AssertionError(f"{error!r}: {self.story()}") from error
        self.done += 1

    def story(self) -> str:
        return f"operation {self.done}, the last ones: " + "; ".join(self._log)

    def note(self, text: str) -> None:
        self._log = [*self._log[1 - _KEPT :], text]

    # Choosing

    def name(self) -> str:
        return f"f{self.dice.randrange(_NAMES)}"

    def handle(self) -> Handle:
        return self.dice.choice(self.handles)

    def size(self) -> int:
        longest = self.dice.choice([1, 100, 5000, 5000, 5000, 70_000, 400_000])
        return self.dice.randrange(1, longest + 1)

    def start(self, body: Body) -> int:
        """Somewhere in a file or a little behind it; often where pages, frames or blocks meet."""
        reach = self.dice.choice([len(body.data), len(body.data) + 10_000, LIMIT])
        start = self.dice.randrange(min(reach, LIMIT - 1) + 1)
        return start // 4096 * 4096 if self.dice.random() < 0.3 else start

    # Names

    def open_one(self) -> None:
        if len(self.handles) >= _HANDLES:
            self.close_one()
        name = self.name()
        flags = os.O_RDWR | os.O_CREAT | self.dice.choice([0, 0, 0, os.O_APPEND, os.O_DIRECT, os.O_DSYNC, os.O_TRUNC])
        self.note(f"open {name} {flags:o}")
        body = self.files.setdefault(name, Body(names={name}))
        self.handles.append(Handle(os.open(self.place / name, flags), body, flags))
        if flags & os.O_TRUNC:
            body.cut(0)

    def close_one(self) -> None:
        handle = self.handle()
        self.note("close")
        self.handles.remove(handle)
        os.close(handle.descriptor)

    def rename(self) -> None:
        name, target = self.name(), self.name()
        body, lost = self.files.get(name), self.files.get(target)
        if body is None:
            return
        self.note(f"rename {name} {target}")
        (self.place / name).rename(self.place / target)
        if body is lost:
            return  # two names of one file both stay
        if lost is not None:
            lost.names.remove(target)
        del self.files[name]
        self.files[target] = body
        body.names ^= {name, target}

    def link(self) -> None:
        name, new = self.name(), self.name()
        body = self.files.get(name)
        if body is None or new in self.files:
            return
        self.note(f"link {name} {new}")
        (self.place / new).hardlink_to(self.place / name)
        self.files[new] = body
        body.names.add(new)

    def unlink(self) -> None:
        name = self.name()
        body = self.files.pop(name, None)
        if body is None:
            return
        self.note(f"unlink {name}")
        (self.place / name).unlink()
        body.names.remove(name)

    # Content

    def write(self) -> None:
        handle = self.handle()
        start = self.start(handle.body)
        data = self.dice.randbytes(min(self.size(), LIMIT - start))
        self.note(f"write {self.label(handle)} {start} {len(data)}")
        if handle.flags & os.O_APPEND:
            start = len(handle.body.data)
            data = data[: LIMIT - start]
            assert os.write(handle.descriptor, data) == len(data), self.story()
        else:
            assert os.pwrite(handle.descriptor, data, start) == len(data), self.story()
        handle.body.put(start, data)

    def append(self) -> None:
        name = self.name()
        body = self.files.get(name)
        if body is None:
            return
        data = self.dice.randbytes(self.size())[: LIMIT - len(body.data)]
        self.note(f"append {name} {len(data)}")
        with (self.place / name).open("ab", buffering=0) as file:
            file.write(data)
        body.data += data

    def read(self) -> None:
        handle = self.handle()
        start, size = self.start(handle.body), self.size()
        self.note(f"read {self.label(handle)} {start} {size}")
        found = os.pread(handle.descriptor, size, start)
        self.compare(found, handle.body.data[start : start + size], start)

    def truncate(self) -> None:
        handle = self.handle()
        size = self.start(handle.body)
        self.note(f"truncate {self.label(handle)} {size}")
        names = sorted(handle.body.names)
        if names and self.dice.random() < 0.5:
            os.truncate(self.place / names[0], size)
        else:
            os.ftruncate(handle.descriptor, size)
        handle.body.cut(size)

    def map(self) -> None:
        handle = self.handle()
        body = handle.body
        if not body.data:
            return
        start = self.dice.randrange(len(body.data))
        data = self.dice.randbytes(min(self.size(), len(body.data) - start))
        self.note(f"map {self.label(handle)} {start} {len(data)}")
        with mmap.mmap(handle.descriptor, 0) as view:
            self.compare(view[start : start + len(data)], body.data[start : start + len(data)], start)
            view[start : start + len(data)] = data
        body.put(start, data)
        body.mapped = True

    def copy(self) -> None:
        source, target = self.handle(), self.handle()
        start, size = self.start(source.body), self.size()
        goal = min(self.start(target.body), LIMIT - size)
        apart = source.body is not target.body or abs(goal - start) >= size
        if not apart or target.flags & os.O_APPEND or start >= len(source.body.data):
            return
        self.note(f"copy {self.label(source)} {start} {size} {self.label(target)} {goal}")
        done = os.copy_file_range(source.descriptor, target.descriptor, size, start, goal)
        target.body.put(goal, bytes(source.body.data[start : start + done]))

    def sync(self) -> None:
        handle = self.handle()
        self.note(f"sync {self.label(handle)}")
        self.dice.choice([os.fsync, os.fdatasync])(handle.descriptor)
        handle.body.mapped = False

    # Looking

    def look(self) -> None:
        handle = self.handle()
        found = os.fstat(handle.descriptor)
        self.note(f"look {self.label(handle)}")
        wanted = len(handle.body.data), len(handle.body.names)
        assert (found.st_size, found.st_nlink) == wanted, f"{wanted} wanted: {self.story()}"

    def check(self) -> None:
        """Look at everything: the directory, each file by name, each open file."""
        assert {path.name for path in self.place.iterdir()} == set(self.files), self.story()
        for name, body in self.files.items():
            self.compare((self.place / name).read_bytes(), body.data, 0)
        for handle in self.handles:
            self.compare(os.pread(handle.descriptor, LIMIT + 1, 0), handle.body.data, 0)

    def compare(self, found: bytes, wanted: bytes | bytearray, start: int) -> None:
        if found == wanted:
            return
        assert len(found) == len(wanted), f"{len(found)} bytes instead of {len(wanted)}: {self.story()}"
        differing = next(at for at in range(len(found)) if found[at] != wanted[at])
        raise AssertionError(f"byte {start + differing} differs: {self.story()}")

    def label(self, handle: Handle) -> str:
        return f"{'+'.join(sorted(handle.body.names)) or 'nameless'}({handle.flags:o})"

    # Before the mount goes

    def write_pages(self) -> None:
        """What lies in pages changed through mmap alone is the kernel's: sync it, as a program would."""
        for handle in self.handles:
            if handle.body.mapped:
                os.fsync(handle.descriptor)
                handle.body.mapped = False
        for name, body in self.files.items():
            if body.mapped:
                with (self.place / name).open("rb") as file:
                    os.fsync(file.fileno())
                body.mapped = False

    def close(self) -> None:
        for handle in self.handles:
            with suppress(OSError):
                os.close(handle.descriptor)
        self.handles.clear()
