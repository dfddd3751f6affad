"""Where the parts of a volume are: all of a volume that those need to know who ask its owner.

Quick to import, for them. No dataclass, which is as slow as the rest of what they need.
"""

from pathlib import Path
from typing import NamedTuple


class VolumePaths(NamedTuple):
    """Where the parts of a volume are. `root` is absolute."""

    root: Path

    @property
    def properties(self) -> Path:
        return self.root / "volume.toml"

    @property
    def store(self) -> Path:
        return self.root / "exnode_store.sqlite"

    @property
    def snapshots(self) -> Path:
        """Is there once the first one was made."""
        return self.root / "snapshots"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def depot(self) -> Path:
        return self.root / "depot"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def control(self) -> Path:
        return self.run / "control.sock"

    @property
    def directory_below(self) -> Path:
        return self.run / "directory_below"

    @property
    def safe(self) -> Path:
        """Is there when the last mount left nothing in the spool but what lacks copies beyond min_copies."""
        return self.run / "safe"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def key(self) -> Path:
        return self.root / "volume.key"

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories below the root that a volume has; all 0700."""
        return self.spool, self.cache, self.depot, self.run, self.log
