"""Fixtures of the tests on real mounts; tests/faults takes them from here."""

import os
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from .running import HEARD, run
from .volumes import Depot, Session, Volume, find_secret

OpenVolume = Callable[..., AbstractContextManager[Volume]]


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    """Where volumes come from; fails the last test when any of them left a mount, a process or a file."""
    assert Path("/dev/fuse").exists(), "no /dev/fuse: tests on real mounts cannot run (modprobe fuse)"
    one = Session()
    try:
        yield one
    finally:
        one.close()
    said = "\n".join(HEARD.errors).encode("utf-8", "surrogateescape") + b"\n".join(HEARD.command_lines)
    secret = find_secret(said, [])
    assert not secret, f"standard error, a log or a command line held a capability: {secret!r}"


@pytest.fixture
def directory(session: Session) -> Iterator[Path]:
    """A directory of the test's own, on a path that any user may walk."""
    with session.scratch() as path:
        yield path


@pytest.fixture
def volume(session: Session) -> Iterator[Volume]:
    """A volume on its embedded depot, mounted, for this test alone."""
    with session.volume() as one:
        yield one


@pytest.fixture(scope="module")
def shared(session: Session) -> Iterator[Volume]:
    """A mounted volume on its embedded depot for all tests of a module: each works in a directory of its own."""
    with session.volume() as one:
        one.mountpoint.chmod(0o755)
        yield one


@pytest.fixture
def place(shared: Volume, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own on the module's mount."""
    path = shared / f"{request.node.name[:60].replace('/', '_')}"
    path.mkdir()
    return path


@pytest.fixture
def volumes(session: Session) -> Iterator[Callable[..., Volume]]:
    """Makes volumes: `volumes(*mkfs_words, depots=0, mount=True, options="")`."""
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(session.volume(*words, **more))


@pytest.fixture
def two(volumes: Callable[..., Volume]) -> Volume:
    """A volume with a copy on each of two depots."""
    return volumes("--copies", "2", depots=2)


@pytest.fixture
def depots(session: Session) -> Iterator[Callable[..., Depot]]:
    """Starts depots: `depots("--capacity", "10M")`."""
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(session.depot(*words, **more))


@pytest.fixture(scope="session")
def source_tree(session: Session) -> Iterator[Path]:
    """A tar of the running Python's standard library, and beside it the same unpacked, `tree`."""
    with session.scratch() as path:
        library = sysconfig.get_path("stdlib")
        # One static library of 50 MB adds time and nothing else.
        left_out = ("--exclude=site-packages", "--exclude=dist-packages", "--exclude=__pycache__", "--exclude=*.a")
        run("tar", "-C", library, *left_out, "-cf", path / "source.tar", ".")
        (path / "tree").mkdir()
        run("tar", "-C", path / "tree", "-xf", path / "source.tar")
        yield path / "source.tar"


@pytest.fixture
def as_root() -> None:
    if os.geteuid():
        pytest.skip("needs root")
