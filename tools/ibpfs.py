"""ibpfs: the command. Its verbs are in `verbs`; `ibpfs flush MOUNTPOINT`, as a script has it, needs none of that.

It asks the process that serves the mount, and waits. With click, and what may be the owner of a volume itself, it was
three times as long as that (CPU time without Python's own start: 25 ms of 100, on a busy machine).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ibpfs.control import NotInUse, call
from ibpfs.paths import VolumePaths
from ibpfs_tools import mounts


def main() -> None:
    if not _is_flushed(sys.argv[1:]):
        from ibpfs_tools import verbs

        verbs.main()


def _is_flushed(words: Sequence[str]) -> bool:
    """Do what is asked for if it is just that, and nobody looks on; else return False, with nothing done."""
    if None in (sys.stdin, sys.stdout, sys.stderr) or sys.stderr.isatty():
        return False
    if len(words) != 2 or words[0] != "flush" or words[1].startswith("-"):
        return False
    try:
        entry = mounts.mount_on(mounts.absolute(words[1]))
        if entry is None:
            return False
        tell_note(words[1], call(VolumePaths(Path(entry.source)), "flush"))
    except NotInUse:
        return False
    except BaseException as error:
        from ibpfs_tools import exits

        exits.leave("ibpfs", error, exits.COMMAND)
    return True


def tell_note(volume: str, result: Any) -> None:
    """What is to be said of a flush that has ended well."""
    if isinstance(result, dict) and result.get("note"):
        print(f"ibpfs: {volume}: {result['note']}", file=sys.stderr)
