"""What the process that owns a volume asks of the system for itself."""

import ctypes
import gc
import os
import resource
import sys

#: A thread that is done with a sync must not wait 5 ms for the interpreter.
_SWITCH_INTERVAL = 0.0005
_DESCRIPTORS = 65536
_PR_SET_NAME = 15
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
#: Freed memory that is kept for the next block, not given back page by page: to seal 1 MiB takes 290 us with that, 72
#: without; to put a record of 1 MiB into the spool 920 and 160.
_KEPT = 32 * 1024 * 1024
#: So many more objects than before that may hold others, until cycles are looked for.
_LOOK_AFTER = 10_000


def prepare_process() -> None:
    """Private files, no core dumps (they would hold keys), many descriptors, a name, quick thread hand-over."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NAME, b"ibpfs", 0, 0, 0)
    if hasattr(libc, "mallopt"):  # of glibc
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    sys.setswitchinterval(_SWITCH_INTERVAL)


def calm_collector() -> None:
    """What is here stays: cycles are looked for among what comes later, and less often.

    Of the 125 us of CPU time that a new file of 4 KiB cost, with its upload, 14 went into that, half of it into looking
    at the program itself again; 2 are left, and no pauses of 40 ms.
    """
    gc.freeze()
    gc.set_threshold(_LOOK_AFTER)
