"""What takes the set-id bits from a file, where the kernel leaves that to us (FUSE_HANDLE_KILLPRIV_V2).

Before a write that takes them it asks to change nothing; of who cuts a file it says so in a flag that libfuse drops.
"""

from pathlib import Path

from pyfuse3 import RequestContext

from ibpfs.exnode_store.attributes import AttributeChange

_CAP_FSETID = 4
#: Number, in /proc, of the user namespace that the kernel starts with: capabilities in others do not count here.
_FIRST_USER_NAMESPACE = 0xEFFFFFFD


def takes_set_id(change: AttributeChange, ctx: RequestContext) -> bool:
    """Whether the bits go with it: a file is cut off, or is about to be written."""
    return is_nothing(change) if change.size is None else not _may_keep_set_id(ctx)


def is_nothing(change: AttributeChange) -> bool:
    """As the kernel asks for before a file is written, and for a chown that changes nothing: that may have a ctime."""
    return (
        change.mode is change.uid is change.gid is None and change.size is change.atime_ns is change.mtime_ns is None
    )


def _may_keep_set_id(ctx: RequestContext) -> bool:
    """Whether who cuts a file off has CAP_FSETID: as a rule root alone, and nobody in a user namespace."""
    if ctx.uid != 0:
        return False
    try:
        status = Path(f"/proc/{ctx.pid}/status").read_text("ascii", "replace")
        effective = int(status.split("\nCapEff:")[1].split("\n")[0], 16)
        namespace = Path(f"/proc/{ctx.pid}/ns/user").stat().st_ino
    except (OSError, IndexError, ValueError):  # another process namespace, or gone
        return False
    return namespace == _FIRST_USER_NAMESPACE and bool(effective >> _CAP_FSETID & 1)
