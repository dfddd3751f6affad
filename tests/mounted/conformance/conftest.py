"""Where the conformance suite works: on the local file system, so that an expectation is itself checked; on a mount by
root; and, in a process of uid 1000, on a mount by that user.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mounted.users import UID, user_volume
from tests.mounted.volumes import Session, Volume

from .calls import become, in_child

ROOT = os.geteuid() == 0
_numbers = itertools.count()


@pytest.fixture(scope="session")
def local(session: Session) -> Iterator[Path]:
    """A directory of a file system that POSIX programs know well."""
    with session.scratch() as path:
        yield path


@pytest.fixture(scope="session")
def mount(session: Session) -> Iterator[Volume]:
    with session.volume() as one:
        one.mountpoint.chmod(0o755)
        yield one


@pytest.fixture(scope="session")
def of_user(session: Session) -> Iterator[Path]:
    with user_volume(session) as one:
        yield one.mountpoint


def _place(request: pytest.FixtureRequest) -> Path:
    where = {"local": "local", "mount": "mount", "user": "of_user"}[request.param]
    base = request.getfixturevalue(where)
    path: Path = (base.mountpoint if isinstance(base, Volume) else base) / f"{next(_numbers)}"
    if request.param == "user" and ROOT:
        in_child(partial(_as_user, path.mkdir))
    else:
        path.mkdir()
    return path


def _as_user(function: Callable[[], object]) -> None:
    become(UID, UID)
    function()


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(params=["local", "mount", "user"] if ROOT else ["local", "user"])
def place(request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own, of every kind that there is."""
    return _place(request)


@pytest.fixture(params=["local", "mount"])
def roots(request: pytest.FixtureRequest, as_root: None) -> Path:
    """A directory of root's, for a test that needs to be root."""
    return _place(request)


@pytest.fixture(params=["mount", "user"] if ROOT else ["user"])
def ours(request: pytest.FixtureRequest) -> Path:
    """A directory on a mount, for what is said of ibpfs alone."""
    return _place(request)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test on the user's mount runs in a process of that user."""
    chosen = getattr(pyfuncitem, "callspec", None)
    if not ROOT or chosen is None or "user" not in [chosen.params.get(name) for name in ("place", "ours")]:
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    in_child(partial(_as_user, partial(pyfuncitem.obj, **wanted)))
    return True
