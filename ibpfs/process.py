"""What the process that owns a volume asks of the system for itself."""

import ctypes
import os
import resource
import sys

#: A thread that is done with a sync must not wait 5 ms for the interpreter.
_SWITCH_INTERVAL = 0.0005
_DESCRIPTORS = 65536
_PR_SET_NAME = 15


def prepare_process() -> None:
    """Private files, no core dumps (they would hold keys), many descriptors, a name, quick thread hand-over."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"ibpfs", 0, 0, 0)
    sys.setswitchinterval(_SWITCH_INTERVAL)
