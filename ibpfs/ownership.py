"""One process owns a volume: the lock in VOLUME/run, and what its holder says there of itself."""

import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ibpfs.config import VolumePaths
from ibpfs.errors import VolumeBusy, VolumeError
from ibpfs.kernel import mounts_of

_log = logging.getLogger(__name__)

#: What an owner may be at: it has the volume mounted, carries the rest to the depots, or runs a command on it.
MOUNTED, DRAINING, WORKING = "mounted", "draining", "working"
_LOOK_EVERY = 0.1
#: An owner that says it is mounted while no mount is to be seen is given this long to notice its end.
_NOTICE = 5.0
_STATE_LIMIT = 4096


class Ownership:
    """The held lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.state = WORKING
        self.mountpoint: Path | None = None

    def tell(self, state: str, mountpoint: Path | None = None) -> None:
        """Note what the owner is at, for those who come to the lock."""
        self.state, self.mountpoint = state, mountpoint
        said = {"pid": os.getpid(), "state": state, "mountpoint": str(mountpoint) if mountpoint else None}
        os.pwrite(self._descriptor, json.dumps(said).encode().ljust(_STATE_LIMIT), 0)


@asynccontextmanager
async def owned(paths: VolumePaths) -> AsyncIterator[Ownership]:
    """Hold the volume's lock. Waits for an owner that is about to end; VolumeBusy while the volume is mounted."""
    descriptor = _open_lock(paths)
    try:
        await _lock(descriptor, paths)
        ownership = Ownership(descriptor)
        ownership.tell(WORKING)
        yield ownership
        ownership.tell(WORKING)
    finally:
        os.close(descriptor)


def _open_lock(paths: VolumePaths) -> int:
    try:
        paths.run.mkdir(mode=0o700, exist_ok=True)
        return os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VolumeError(f"{paths.lock}: {error.strerror}") from None


async def _lock(descriptor: int, paths: VolumePaths) -> None:
    import trio  # slow to import, and needed by owners only

    seen_mounted = trio.current_time()
    said = ""
    while not _try_lock(descriptor):
        owner = owner_of(paths)
        if owner.get("state") != MOUNTED or is_dying(owner):
            seen_mounted = trio.current_time()
        elif mounts_of(paths.root) or trio.current_time() > seen_mounted + _NOTICE:
            raise VolumeBusy(f"{paths.root}: is mounted on {owner.get('mountpoint')} (process {owner.get('pid')})")
        said = _say_once(said, paths, owner)
        await trio.sleep(_LOOK_EVERY)


def _say_once(said: str, paths: VolumePaths, owner: dict[str, Any]) -> str:
    state = str(owner.get("state"))
    if state != said:
        doing = "carries the last bytes to the depots" if state in (DRAINING, MOUNTED) else "works on it"
        _log.info("%s: process %s still %s; waiting for it", paths.root, owner.get("pid"), doing)
    return state


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file; whoever asks holds it for an instant."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_dying(owner: dict[str, Any]) -> bool:
    """Whether the owner was killed. It holds the lock until the last of its threads is gone."""
    try:
        return Path(f"/proc/{owner.get('pid')}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return False


def owner_of(paths: VolumePaths) -> dict[str, Any]:
    """What the last owner said of itself: pid, state, mountpoint. Empty when that cannot be read."""
    try:
        found = json.loads(paths.lock.read_bytes()[:_STATE_LIMIT] or b"{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
