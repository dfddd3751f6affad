"""A volume of an ordinary user, mounted through fusermount3."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .running import BIN, Done, kill_and_wait, processes_of, run, until
from .volumes import Session, mount_table

UID = 1000
Call = Callable[..., Done]


class UserVolume:
    """A volume of uid 1000 on a mount point of his."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root, self.mountpoint = home / ".local/share/ibpfs/work", home / "work"
        self._user = () if os.geteuid() else ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")

    def call(self, *words: object, **more: object) -> Done:
        more.setdefault("cwd", self.home)
        env = {"HOME": str(self.home), "XDG_DATA_HOME": "", "USER": "somebody"}
        return run(*self._user, *words, env=env, **more)  # type: ignore[arg-type]

    def ours(self, name: str, *words: object, **more: object) -> Done:
        return self.call(BIN / name, *words, **more)

    def end(self) -> None:
        """Take the mount away; wait for its process, and then end the embedded depot, which would take its time."""
        depot = processes_of(self.root / "depot")
        self.ours("umount.ibpfs", "-l", self.mountpoint, code=None)
        until(lambda: not set(processes_of(self.home)) - set(depot), 20)
        kill_and_wait(depot, signal.SIGTERM)

    def is_mounted(self) -> bool:
        return any(os.fsencode(self.mountpoint) in line for line in mount_table())


@contextmanager
def user_volume(session: Session) -> Iterator[UserVolume]:
    """A mounted volume of uid 1000, or of this process's user where that is not root."""
    mode = Path("/dev/fuse").stat().st_mode & 0o666
    assert mode == 0o666, f"/dev/fuse has mode {mode:o}: chmod 0666 /dev/fuse, as udev does"
    with session.scratch() as home:
        uid = os.geteuid() or UID
        os.chown(home, uid, uid)
        one = UserVolume(home)
        usable = one.call("sh", "-c", f"{BIN}/python -c pass", code=None).returncode == 0
        assert usable, f"{BIN}/python is not for other users: make .venv with /usr/bin/python3, in a public place"
        one.call("mkdir", one.mountpoint)
        one.ours("mkfs.ibpfs", "work")
        one.ours("mount.ibpfs", "work", one.mountpoint)
        try:
            yield one
        finally:
            one.end()
