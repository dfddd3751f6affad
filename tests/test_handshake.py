"""INIT goes to libfuse and comes back with one word more; what the kernel does then is for tests/mounted to see."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ibpfs.handshake import HANDLE_KILLPRIV_V2, Handshake

OTHERS = 0x1234
REPLY = struct.pack("=IiQIIII", 80, 0, 7, 7, 31, 4096, OTHERS) + bytes(48)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's, and the one that libfuse has, as if it were of /dev/fuse: each message is one."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        yield kernel, ours


def request(offered: int, opcode: int = 26) -> bytes:
    return struct.pack("=IIQQIIIIIIII", 104, opcode, 7, 0, 0, 0, 0, 0, 7, 40, 4096, offered) + bytes(48)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (request(HANDLE_KILLPRIV_V2 | 1), OTHERS | HANDLE_KILLPRIV_V2),
        (request(1), OTHERS),  # an older kernel
        (request(HANDLE_KILLPRIV_V2, opcode=1), OTHERS),  # what is not INIT, and is passed on as it is
    ],
)
def test_what_is_taken(ends: tuple[socket.socket, socket.socket], asked: bytes, taken: int) -> None:
    kernel, ours = ends
    kernel.send(asked)
    handshake = Handshake(ours.fileno())
    assert not handshake.finish()
    assert os.read(ours.fileno(), 1 << 20) == asked
    assert os.writev(ours.fileno(), [REPLY[:16], REPLY[16:]]) == len(REPLY)
    assert handshake.finish()
    expected = bytearray(REPLY)
    struct.pack_into("=I", expected, 28, taken)
    assert kernel.recv(1 << 20) == expected
    kernel.send(b"the next request")
    assert os.read(ours.fileno(), 1 << 20) == b"the next request"
    assert not os.get_inheritable(ours.fileno())
    assert handshake.finish()


def test_a_refusal_goes_as_it_is(ends: tuple[socket.socket, socket.socket]) -> None:
    kernel, ours = ends
    kernel.send(request(HANDLE_KILLPRIV_V2))
    handshake = Handshake(ours.fileno())
    os.read(ours.fileno(), 1 << 20)
    refusal = struct.pack("=IiQ", 16, -71, 7)
    os.write(ours.fileno(), refusal)
    assert handshake.finish()
    assert kernel.recv(1 << 20) == refusal


@pytest.mark.parametrize("replied", [False, True])
def test_nothing_stays_open(ends: tuple[socket.socket, socket.socket], replied: bool) -> None:
    kernel, ours = ends
    before = set(Path("/proc/self/fd").iterdir())
    kernel.send(request(HANDLE_KILLPRIV_V2))
    handshake = Handshake(ours.fileno())
    if replied:
        os.read(ours.fileno(), 1 << 20)
        os.write(ours.fileno(), REPLY)
        assert handshake.finish()
    handshake.give_up()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_nothing_stays_open_where_there_is_no_socket(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, ours = ends
    before = set(Path("/proc/self/fd").iterdir())
    kernel.send(request(HANDLE_KILLPRIV_V2))

    def too_many(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", too_many)
    with pytest.raises(OSError, match="Too many"):
        Handshake(ours.fileno())
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_mount_that_is_gone_already(ends: tuple[socket.socket, socket.socket]) -> None:
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)  # reading its first byte fails
    try:
        handshake = Handshake(descriptor)
        assert handshake.finish()
        assert os.fstat(descriptor)
    finally:
        os.close(descriptor)
