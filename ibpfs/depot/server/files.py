"""Writing to the files of allocations: whole or not at all, and what a disk's refusals mean to a client."""

import errno
import logging
import os

from ibpfs.depot.wire.errors import DepotError, ErrorCode, error_for

log = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def refusal(error: OSError) -> DepotError:
    if error.errno in _NO_ROOM:
        return error_for(ErrorCode.WOULD_EXCEED_LIMIT)
    log.warning("cannot write: %s", error)
    return error_for(ErrorCode.FILE_WRITE)
