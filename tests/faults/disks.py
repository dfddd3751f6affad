"""The losing disk, as tests use it."""

import subprocess
import sys
from pathlib import Path

from tests.mounted.running import run

from . import losing_disk


class Disk:
    """The losing disk, mounted on a directory."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        mountpoint.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, losing_disk.__file__, mountpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self, *words: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        run("umount", "-l", self.mountpoint, code=None)
        self.process.kill()
        self.process.communicate()
