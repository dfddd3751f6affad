"""What the store says of a file without its bytes: the inode's row, and how a caller asks for a new or changed one."""

import stat
from dataclasses import dataclass

#: Nothing on this file system has more links: a directory's subdirectories count, as on ext4.
MAX_LINKS = 65000
MAX_NAME = 255
MAX_TARGET = 4095
MAX_SIZE = (1 << 63) - 1

#: Columns of table inodes in the order of Inode's fields.
COLUMNS = (
    "ino, generation, version, policy, mode, nlink, uid, gid, rdev, size, allocated, "
    "atime_ns, mtime_ns, ctime_ns, birth_ns, spooled"
)
#: The same for a JOIN in which the table goes by `i`.
JOINED_COLUMNS = ", ".join(f"i.{column}" for column in COLUMNS.split(", "))


@dataclass(slots=True)
class Inode:
    """A row of table inodes; see the schema for what each field means."""

    ino: int
    generation: int
    version: int
    policy: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    allocated: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    spooled: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


@dataclass(frozen=True, slots=True)
class NewInode:
    """What a caller wants to create. `mode` has the type bits and is not masked yet: `umask` is applied here.

    `target` is a symlink's.
    """

    mode: int
    uid: int
    gid: int
    umask: int = 0
    rdev: int = 0
    target: bytes | None = None


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What a caller wants changed; None leaves as it is. `mode` is permission bits (type bits are ignored).

    `ctime_ns` None means now.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    size: int | None = None
    ctime_ns: int | None = None
