"""Where exceptions become errno: one table, and the decorator that every handler of the kernel's requests wears.

pyfuse3 ends the mount on any exception but FUSEError; so nothing else may leave a handler.
"""

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import trio
from pyfuse3 import FUSEError

from ibpfs import errors
from ibpfs.mount_options import MountOptions

_log = logging.getLogger(__name__)

ERRNO: dict[type[Exception], int] = {
    errors.NotFound: errno.ENOENT,
    errors.NameExists: errno.EEXIST,
    errors.NotEmpty: errno.ENOTEMPTY,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.TooManyLinks: errno.EMLINK,
    errors.InvalidArgument: errno.EINVAL,
    errors.NotPermitted: errno.EPERM,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.NoAttribute: errno.ENODATA,
    errors.AttributeTooBig: errno.E2BIG,
    errors.AttributeNameTooLong: errno.ERANGE,
    errors.NoSpace: errno.ENOSPC,
    errors.IbpfsError: errno.EIO,
    trio.TooSlowError: errno.EIO,
}


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which a request is answered with EIO. `write` is bounded by the cache, which knows the reason."""

    read: float = 20.0
    fsync: float = 30.0

    @classmethod
    def of(cls, options: MountOptions) -> "Deadlines":
        seconds = options.deadline
        return cls() if seconds is None else cls(seconds, seconds)


Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])


def answered(limit: str = "", *, at_once: Callable[..., Any] | None = None) -> Callable[[Handler], Handler]:
    """Let only FUSEError out of a method; bound it by the deadline `limit` of its object, if it is one that waits.

    Most do not wait, and a deadline costs 10 us of each request (measured: a seventh of a rename). `at_once` may give
    the answer without waiting: it is called with the method's arguments, and returns None where it cannot.
    """

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def bounded(self: Any, *arguments: Any) -> Any:
            try:
                if not limit:
                    return await handler(self, *arguments)
                if at_once is not None and (answer := at_once(self, *arguments)) is not None:
                    return answer
                with trio.CancelScope(deadline=trio.current_time() + getattr(self.deadlines, limit)):
                    return await handler(self, *arguments)
                raise trio.TooSlowError
            except FUSEError:
                raise
            except Exception as error:
                blame = getattr(self, "blame", None)
                about = None if blame is None else partial(blame, handler.__name__, arguments)
                raise FUSEError(errno_of(error, handler.__name__, about)) from error

        return cast("Handler", bounded)

    return decorate


def swallowed(handler: Handler) -> Handler:
    """For `forget`, which has no answer: nothing leaves it."""

    @functools.wraps(handler)
    async def silent(self: Any, *arguments: Any) -> None:
        try:
            await handler(self, *arguments)
        except Exception:
            _log.exception("%s failed", handler.__name__)

    return cast("Handler", silent)


def errno_of(error: BaseException, request: str, about: Callable[[bool], tuple[str, str]] | None = None) -> int:
    """Return the errno for an exception that ends `request`, and log what somebody should look at.

    `about` is asked, where that is EIO, which file it was and (if so told) what it waited for.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    code = next((ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO), None)
    if code is not None and code != errno.EIO:
        return code
    late = isinstance(error, trio.TooSlowError | errors.DeadlineExceeded)
    file, waited = (request, "") if about is None else about(late)
    if code is None:
        _log.error("%s is answered with EIO", file, exc_info=error)
    else:
        reason = str(error) or "the deadline passed"
        _log.warning("%s is answered with EIO: %s%s", file, reason, f"; {waited}" if waited else "")
    return errno.EIO


def is_news(record: logging.LogRecord) -> bool:
    """A filter of pyfuse3's log: that the kernel waits for an answer no more, since the mount went, is none."""
    return "fuse_reply_*" not in str(record.msg) or record.args != (os.strerror(errno.ENOENT),)
