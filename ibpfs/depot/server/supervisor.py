"""What a service manager gives and wants to hear: listening sockets (LISTEN_FDS), states (NOTIFY_SOCKET).

Both variables are taken out of the environment, so that no child believes they are meant for it.
"""

import logging
import os
import socket
import time

log = logging.getLogger(__name__)

FIRST_INHERITED = 3


def inherited_sockets() -> tuple[int, ...]:
    """Descriptors that were passed to this very process."""
    count, process = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count.isdecimal():
        return ()
    descriptors = tuple(range(FIRST_INHERITED, FIRST_INHERITED + int(count)))
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return descriptors


class Supervisor:
    """Told of every change of state; nobody listens where NOTIFY_SOCKET is not set."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        # "@" stands for the zero byte of an address that is no file.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                sock.setblocking(False)
                sock.sendto(message.encode(), address)
            except OSError as error:
                log.warning("the service manager cannot be told: %s", error)
