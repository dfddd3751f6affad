"""What a gateway answers to those who are no browser of ours."""

import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from starlette.requests import Request
from starlette.responses import Response

from ibpfs.depot.address import Address
from ibpfs.depot.server.certificate import fingerprint
from ibpfs.depot.server.reach import Places
from ibpfs.errors import UsageError
from ibpfs.exnode_store.sharing.links import Locator, Place
from ibpfs.gateway.app import Gateway, base_of
from ibpfs.gateway.limits import Limits
from ibpfs.gateway.relay import Relay
from tests.depot.conftest import DepotProcess

from .conftest import PROGRAM, GatewayProcess
from .sharing import MadeShare, make_share, revoke


@pytest.fixture(scope="module")
def share(depot: DepotProcess) -> MadeShare:
    return make_share(depot.address, {"file": b"some bytes" * 1000})


def ask(
    gateway: GatewayProcess, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=10)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
    connection.request(method, path, data, headers or {})
    reply = connection.getresponse()
    answer = reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
    connection.close()
    return answer


def wanted(share: MadeShare, **changes: Any) -> dict[str, Any]:
    place = share.link.locator.places[0]
    key = f"{place.read.key}/{place.read.type_key}"
    told = {"locator": share.link.locator.render(), "depot": str(share.depot), "key": key}
    return told | {"offset": 0, "length": 20} | changes


def test_a_page_lets_nothing_in_from_elsewhere(gateway: GatewayProcess, share: MadeShare) -> None:
    for method in ("GET", "HEAD"):
        status, headers, body = ask(gateway, method, f"/s/{share.link.locator.render()}")
        assert status == 200
        assert (b"<main>" in body) == (method == "GET")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/robots.txt", "/pages/main.js", "/pages/style.css", "/worker.js"])
def test_what_a_page_needs(gateway: GatewayProcess, path: str) -> None:
    assert ask(gateway, "GET", path)[0] == 200


@pytest.mark.parametrize("path", ["/pages/page.html", "/pages/..%2fapp.py", "/nothing", "/s/", "/record/"])
def test_nothing_else(gateway: GatewayProcess, path: str) -> None:
    assert ask(gateway, "GET", path)[0] == 404


def test_a_record_as_it_lies_on_the_depot(gateway: GatewayProcess, share: MadeShare) -> None:
    status, _, body = ask(gateway, "GET", f"/record/{share.link.locator.render()}")
    assert status == 200
    assert body.startswith(b"IBPr")


def test_looking_changes_nothing(gateway: GatewayProcess, share: MadeShare) -> None:
    """Programs that look at the links of a mail do so often, in any way, on one connection."""
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=10)
    locator = share.link.locator.render()
    found: dict[str, set[bytes]] = {"GET": set(), "HEAD": set()}
    for path in (f"/record/{locator}", f"/s/{locator}"):
        for method in ("HEAD", "GET", "HEAD", "GET"):
            connection.request(method, path)
            reply = connection.getresponse()
            body = reply.read()
            assert (reply.status, len(body)) == (200, int(reply.headers["content-length"]) if method == "GET" else 0)
            found[method].add(body)
    connection.close()
    assert (len(found["GET"]), found["HEAD"]) == (2, {b""})


def test_a_mangled_link_is_told(gateway: GatewayProcess, share: MadeShare) -> None:
    locator = share.link.locator.render()
    for text in (locator[:-1], "B" + locator[1:], "x" * 5000):
        status, _, body = ask(gateway, "GET", f"/s/{text}")
        assert (status, b"damaged" in body) == (400, True)
        assert ask(gateway, "GET", f"/record/{text}")[0] == 400


def test_a_load_from_the_depot_of_one_certificate(gateway: GatewayProcess, depot: DepotProcess) -> None:
    """That the record is read takes no pin: it is signed."""
    address, right = depot.address.replace("ibp:", "ibps:"), fingerprint(depot.store)
    shares = [make_share(address, {"x": b"content"}, pin=pin.hex()) for pin in (right, bytes(32))]
    answers = [ask(gateway, "POST", "/load", wanted(share)) for share in shares]
    assert [status for status, *_ in answers] == [200, 502]
    assert json.loads(answers[1][2]) == {"error": "unreachable"}
    assert gateway.log.read_text().count(f"{address}: refused: its certificate is another than a link names") == 1


def test_a_load(gateway: GatewayProcess, share: MadeShare) -> None:
    status, headers, body = ask(gateway, "POST", "/load", wanted(share))
    assert (status, len(body), body[:4]) == (200, 20, b"IBPr")
    assert headers["content-type"] == "application/octet-stream"
    assert ask(gateway, "GET", "/load")[0] == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"depot": "ibp://127.0.0.1:1"}, 403),
        ({"depot": "ibp://example.org:6714"}, 403),
        ({"depot": "unix:/run/depot.sock"}, 403),
        ({"key": "not there/1"}, 400),
        ({"key": "notthere/1"}, 404),
        ({"key": "a\n1 9 b/1"}, 400),
        ({"offset": -1}, 400),
        ({"offset": True}, 400),
        ({"length": 1 << 40}, 400),
        ({"length": "20"}, 400),
        ({"offset": 1 << 40}, 404),
        ({"locator": "AAAA"}, 400),
    ],
)
def test_no_other_load(gateway: GatewayProcess, share: MadeShare, changes: dict[str, Any], status: int) -> None:
    assert ask(gateway, "POST", "/load", wanted(share, **changes))[0] == status


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"[" * 4000, b"x" * 100_000])
def test_nonsense_is_no_load(gateway: GatewayProcess, body: bytes) -> None:
    assert ask(gateway, "POST", "/load", body)[0] == 400


def test_a_revoked_share(gateway: GatewayProcess, depot: DepotProcess) -> None:
    share = make_share(depot.address, {"file": b"x"})
    path = f"/record/{share.link.locator.render()}"
    assert ask(gateway, "GET", path)[0] == 200
    revoke(share)
    status, _, body = ask(gateway, "GET", path)
    assert (status, json.loads(body)) == (410, {"error": "revoked"})


def test_an_expired_share_that_its_depot_still_keeps(gateway: GatewayProcess, depot: DepotProcess) -> None:
    share = make_share(depot.address, {"file": b"x"}, hold=-120)
    status, _, body = ask(gateway, "GET", f"/record/{share.link.locator.render()}")
    assert (status, json.loads(body)) == (410, {"error": "expired"})
    assert ask(gateway, "POST", "/load", wanted(share))[0] == 410


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "NONSENSE"])
def test_no_other_method(gateway: GatewayProcess, share: MadeShare, method: str) -> None:
    status, headers, body = ask(gateway, method, f"/s/{share.link.locator.render()}")
    assert (status, body) == (405, b"")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["allow"]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One that speaks to public depots alone."""
    started = GatewayProcess(tmp_path_factory.mktemp("strict"))
    yield started
    assert started.stop() == 0


def test_depots_that_nobody_allowed(strict: GatewayProcess, share: MadeShare) -> None:
    status, _, body = ask(strict, "GET", f"/record/{share.link.locator.render()}")
    assert (status, json.loads(body)) == (403, {"error": "refused"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", "2130706433"])
def test_a_link_is_no_way_into_the_gateways_own_network(
    share: MadeShare, strict: GatewayProcess, depot: DepotProcess, host: str
) -> None:
    """Anybody can make a link that names any place: nothing there hears of it."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as inside:
        place = Place(Address(host, inside.getsockname()[1]), share.link.locator.places[0].read)
        locator = Locator(share.link.locator.share, share.link.locator.expires, (place,)).render()
        assert ask(strict, "GET", f"/record/{locator}")[0] in (403, 502)
        assert ask(strict, "POST", "/load", wanted(share, locator=locator, depot=str(place.address)))[0] in (403, 502)
        inside.settimeout(0)
        with pytest.raises(BlockingIOError):
            inside.accept()


def test_no_public_depots_either(share: MadeShare, tmp_path_factory: Any) -> None:
    own = GatewayProcess(tmp_path_factory.mktemp("own"), "--allowed-only", "--allow", "127.0.0.0/8")
    place = Place(Address("192.88.99.1", 6714), share.link.locator.places[0].read)  # public, and answers nobody
    elsewhere = Locator(share.link.locator.share, share.link.locator.expires, (place,))
    try:
        assert ask(own, "GET", f"/record/{share.link.locator.render()}")[0] == 200
        assert ask(own, "GET", f"/record/{elsewhere.render()}")[0] == 403
    finally:
        assert own.stop() == 0
    done = subprocess.run([PROGRAM, "gateway", "--allowed-only"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_path_of_its_own(share: MadeShare, tmp_path_factory: Any) -> None:
    below = GatewayProcess(tmp_path_factory.mktemp("below"), "--public-url", "https://example.org/files", "--quiet")
    try:
        status, headers, body = ask(below, "GET", f"/files/s/{share.link.locator.render()}/name.bin")
        assert (status, b'<base href="/files/">' in body) == (200, True)
        assert "max-age" in headers["strict-transport-security"]
        assert ask(below, "GET", f"/s/{share.link.locator.render()}")[0] == 404
    finally:
        assert below.stop() == 0


def test_who_asks_too_often_is_told_to_wait(share: MadeShare, tmp_path_factory: Any) -> None:
    slow = GatewayProcess(tmp_path_factory.mktemp("slow"), "--rate", "1")
    try:
        found = [ask(slow, "GET", "/")[0] for _ in range(40)]
        assert found[:4] == [200] * 4
        assert 429 in found
    finally:
        assert slow.stop() == 0


@pytest.mark.parametrize(("limits", "status"), [(Limits(loads=0), 503), (Limits(loads_per_address=0), 429)])
def test_whether_who_asks_has_too_much_or_others(share: MadeShare, limits: Limits, status: int) -> None:
    scope = {"type": "http", "client": ("192.0.2.1", 1), "headers": [],
             "path_params": {"locator": share.link.locator.render()}}  # fmt: skip

    async def asked() -> Response:
        async with Relay([Places.parse("127.0.0.0/8")]).closing() as relay:
            gateway = Gateway(relay, limits, None, behind_proxy=False)
            return await gateway._handled(gateway._record, Request(scope))

    response = trio.run(asked)
    assert (response.status_code, response.headers["retry-after"]) == (status, "1")
    assert json.loads(bytes(response.body)) == {"error": "busy"}


def test_whom_requests_are_counted_of(share: MadeShare, tmp_path_factory: Any) -> None:
    """What stands last in X-Forwarded-For, and only behind a proxy: else it is a visitor's own word."""

    def refused(started: GatewayProcess, *forwarded: str) -> list[bool]:
        try:
            return [ask(started, "GET", "/", headers={"X-Forwarded-For": one})[0] == 429 for one in forwarded]
        finally:
            assert started.stop() == 0

    many = [f"192.0.2.{number}" for number in range(40)]
    direct = GatewayProcess(tmp_path_factory.mktemp("direct"), "--rate", "1")
    assert any(refused(direct, *many))
    assert any("127.0.0.1 GET front 429" in line for line in direct.log.read_text().splitlines())
    behind = GatewayProcess(tmp_path_factory.mktemp("behind"), "--rate", "1", "--behind-proxy")
    assert not any(refused(behind, *many))
    behind = GatewayProcess(tmp_path_factory.mktemp("behind"), "--rate", "1", "--behind-proxy")
    assert any(refused(behind, *(f"{one}, 198.51.100.1" for one in many)))


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing\n")
    words = [PROGRAM, "gateway", "--listen", "127.0.0.1:0", "--certificate", tmp_path / "none.pem"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no certificate with its key" in done.stderr


def test_many_connections_that_say_nothing(tmp_path_factory: Any) -> None:
    """More than a shell usually lets a program have."""
    limited = ("prlimit", "--nofile=64:4096")
    crowded = GatewayProcess(tmp_path_factory.mktemp("crowded"), before=limited)
    place = urlsplit(crowded.url)
    lines = [socket.create_connection((place.hostname or "", place.port or 0), timeout=10) for _ in range(200)]
    try:
        assert ask(crowded, "GET", "/")[0] == 200
    finally:
        for line in lines:
            line.close()
        assert crowded.stop() == 0
    assert "Too many open files" not in crowded.log.read_text()


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [PROGRAM, "gateway", "--listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("url", "base"), [(None, "/"), ("https://a.example", "/"), ("https://a.example/", "/"), ("http://a/b/c/", "/b/c/")]
)
def test_the_path_of_a_public_url(url: str | None, base: str) -> None:
    assert base_of(url) == base


@pytest.mark.parametrize("url", ["a.example", "ftp://a", "https://a/?b", "https://a/<b>", "https:///b"])
def test_what_is_no_public_url(url: str) -> None:
    with pytest.raises(UsageError):
        base_of(url)
