"""A gateway under strangers who break off, or speak nonsense: one connection ends, and all others go on."""

import http.client
import os
import random
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .conftest import GatewayProcess

#: A body that is far too long, and does not come.
LONG = b"POST /load HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{" + b"x" * 5000
GET = b"GET /pages/main.js HTTP/1.1\r\nHost: x\r\n\r\n"
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: SETTINGS, HEADERS of no sense, WINDOW_UPDATE of 0, CONTINUATION without HEADERS, RST_STREAM of an idle stream.
FRAMES = [b"\0\0\0\4\0\0\0\0\0", b"\0\0\5\1\5\0\0\0\1\xff\xff\xff\xff\xff", b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
          b"\0\0\1\x09\4\0\0\0\1\x82", b"\0\0\4\3\0\0\0\0\7\0\0\0\0"]  # fmt: skip
SAID = [
    LONG, GET, GET * 50, GET[:20], b"", b"\r\n" * 100, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + bytes(200),
    b"POST /load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n", GET + LONG, LONG + GET,
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    *(H2 + frame for frame in FRAMES), H2 + b"".join(FRAMES), H2 + random.Random(2).randbytes(3000),
]  # fmt: skip


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, tmp_path: Path, certificate: Path) -> Iterator[str]:
    words = ("--certificate", str(certificate)) if request.param == "https" else ()
    gateway = GatewayProcess(tmp_path, "--rate", "1000", *words)
    try:
        yield gateway.url
    finally:
        assert gateway.stop() == 0, gateway.log.read_text()[-3000:]
        assert "Traceback" not in gateway.log.read_text()


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    plain = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=0.5)
    if parts.scheme == "http":
        return plain
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(plain)


def test_strangers_who_break_off(url: str) -> None:
    source = random.Random(int(os.environ.get("IBPFS_SEED", "7")))
    opened = 0
    for number in range(int(os.environ.get("IBPFS_INPUTS", "150"))):
        said = source.choice(SAID)
        with suppress(OSError), connected(url) as line:
            opened += 1
            for start in range(0, len(said), size := source.choice([7, 1000, 100_000])):
                line.sendall(said[start : start + size])
                if start > 20 * size:
                    break
            if number % 3:
                line.shutdown(socket.SHUT_WR)
            if number % 2:
                line.recv(100)
    assert opened > 100
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    more = {"context": ssl._create_unverified_context()} if parts.scheme == "https" else {}
    client = kind(parts.netloc, timeout=20, **more)
    client.request("GET", "/pages/main.js")
    assert client.getresponse().status == 200
    client.close()
