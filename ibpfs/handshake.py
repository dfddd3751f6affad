"""The kernel's first request, INIT, passed on to libfuse, and its reply to the kernel, with one word more.

Where a file system takes set-id bits away itself (FUSE_HANDLE_KILLPRIV_V2), the kernel remembers of each file that it
has no security.capability; else it asks before every write: 15 us of a small write's 45. libfuse learned the word after
version 3.14. Until it has said it, pyfuse3 reads from, and writes to, a socket of ours in place of the kernel.

Who may not keep the bits is told as well: before such a write the kernel asks to change nothing (SETATTR without a
field) in the name of who writes.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pyfuse3

HANDLE_KILLPRIV_V2 = 1 << 28
_INIT = 26
_LONGEST = 1 << 17
#: In the request: opcode; and what the kernel offers. In the reply: error; what is taken of it.
_OPCODE, _OFFERED = 4, 52
_ERROR, _TAKEN = 4, 28
_WORD = struct.Struct("=I")


class Handshake:
    """With the kernel behind `descriptor`. To be ended with `finish`, or `give_up`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kernel = os.dup(descriptor)
        self._near: socket.socket | None = None
        self._offered = 0
        try:
            request = os.read(self._kernel, _LONGEST)
        except OSError:  # unmounted already: libfuse is told the same
            self.give_up()
            return
        try:
            self._pass_on(request)
        except BaseException:  # or the kernel would wait for the answer as long as this process lives
            self.give_up()
            raise

    def _pass_on(self, request: bytes) -> None:
        if _WORD.unpack_from(request, _OPCODE)[0] == _INIT:
            (self._offered,) = _WORD.unpack_from(request, _OFFERED)
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.setblocking(False)
        self._near.send(request)
        os.dup2(far.fileno(), self._descriptor, inheritable=False)
        far.close()

    def finish(self) -> bool:
        """Whether the kernel has its reply now, and `descriptor` is the kernel's again."""
        if self._near is not None:
            try:
                reply = bytearray(self._near.recv(_LONGEST))
            except BlockingIOError:
                return False
            if len(reply) > _TAKEN and _WORD.unpack_from(reply, _ERROR)[0] == 0:
                (taken,) = _WORD.unpack_from(reply, _TAKEN)
                _WORD.pack_into(reply, _TAKEN, taken | (self._offered & HANDLE_KILLPRIV_V2))
            os.dup2(self._kernel, self._descriptor, inheritable=False)
            with suppress(OSError):  # unmounted meanwhile
                os.write(self._descriptor, reply)
        self.give_up()
        return True

    def give_up(self) -> None:
        if self._near is not None:
            self._near.close()
            self._near = None
        if self._kernel >= 0:
            os.close(self._kernel)
            self._kernel = -1


@contextmanager
def shaking_hands(descriptor: int) -> Iterator[None]:
    """For pyfuse3's loop, which has just been given the descriptor."""
    lowlevel = pyfuse3.trio.lowlevel  # type: ignore[attr-defined]
    ours = lowlevel.wait_readable
    handshake = Handshake(descriptor)

    async def wait_readable(waited: int) -> None:
        if handshake.finish():
            lowlevel.wait_readable = ours
        await ours(waited)

    lowlevel.wait_readable = wait_readable
    try:
        yield
    finally:
        lowlevel.wait_readable = ours
        handshake.give_up()
