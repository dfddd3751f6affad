"""What a gateway answers. GET and HEAD change nothing; a POST to /load is a LOAD, whose capability stands in no URL."""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ibpfs.depot.address import Address
from ibpfs.depot.capability import BadCapability
from ibpfs.depot.client import ShortLoad
from ibpfs.depot.wire import CapabilityNotFound, DepotError, DepotUnreachable
from ibpfs.errors import UsageError
from ibpfs.exnode_store.ledger_rows import unpack_key
from ibpfs.exnode_store.sharing.contents import MAX_NUMBER
from ibpfs.exnode_store.sharing.links import BadLink, Locator
from ibpfs.gateway.limits import Gate, Limits
from ibpfs.gateway.records import NoShare, Records
from ibpfs.gateway.relay import MAX_LOAD, NotPermitted, Relay, TooBusy
from ibpfs.gateway.sending import SealedBytes

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

_MAX_BODY = 4096
_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; worker-src 'self'; frame-src 'self';"
    " img-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-robots-tag": "noindex, nofollow",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
}
_STATUS = {"mangled": 400, "unknown": 404, "expired": 410, "revoked": 410, "refused": 403, "damaged": 502,
           "unreachable": 502, "full": 503, "busy": 429}  # fmt: skip


class Gateway:
    """The handlers of one gateway. `base`: the path of its public URL, which ends with a slash."""

    def __init__(self, relay: Relay, limits: Limits, public_url: str | None, *, behind_proxy: bool) -> None:
        self._relay = relay
        self._records = Records(relay)
        self._gate = Gate(limits)
        self._behind_proxy = behind_proxy
        self._base = base_of(public_url)
        self._is_secure = public_url is not None and public_url.startswith("https:")
        self._pages = {entry.name: entry.read_bytes() for entry in files("ibpfs.gateway").joinpath("pages").iterdir()
                       if entry.name.rpartition(".")[2] in _TYPES}  # fmt: skip

    def app(self) -> Starlette:
        base = self._base.rstrip("/")
        return Starlette(
            routes=[
                Route(f"{base}/", self._answered("front", self._front)),
                Route(f"{base}/s/{{locator}}", self._answered("page", self._page)),
                Route(f"{base}/s/{{locator}}/{{name:path}}", self._answered("page", self._page)),
                Route(f"{base}/record/{{locator}}", self._answered("record", self._record)),
                Route(f"{base}/load", self._answered("load", self._load), methods=["POST"]),
                Route(f"{base}/worker.js", self._answered("file", self._worker)),
                Route(f"{base}/pages/{{name}}", self._answered("file", self._file)),
                Route("/robots.txt", self._answered("file", self._robots)),
                Route("/{rest:path}", self._answered("nothing", self._nothing)),
            ],
            exception_handlers={HTTPException: self._wrong_method, Exception: self._broken},
        )

    def _answered(self, what: str, handler: Handler) -> Handler:
        """Rate limit, headers, and a line in the log in which no capability stands."""

        async def answer(request: Request) -> Response:
            address = self._address(request)
            wait = self._gate.wait(address, trio.current_time())
            response = _failure("busy", wait) if wait else await self._handled(handler, request)
            _log.info("%s %s %s %d", address, request.method, what, response.status_code)
            return self._dressed(response)

        return answer

    def _dressed(self, response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("cache-control", "no-store")
        if self._is_secure:
            response.headers["strict-transport-security"] = "max-age=31536000"
        return response

    async def _wrong_method(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._dressed(Response(status_code=error.status_code, headers=error.headers))

    async def _broken(self, _: Request, __: Exception) -> Response:
        return self._dressed(Response(status_code=500))

    async def _handled(self, handler: Handler, request: Request) -> Response:
        try:
            return await handler(request)
        except BadLink:
            return _failure("mangled")
        except NoShare as error:
            return _failure("full" if error.reason == "busy" else error.reason)
        except NotPermitted:
            return _failure("refused")
        except TooBusy:
            return _failure("full")
        except (CapabilityNotFound, ShortLoad):
            return _failure("unknown")
        except (DepotError, DepotUnreachable):
            return _failure("unreachable")
        except ClientDisconnect:
            return Response(status_code=499)

    def _address(self, request: Request) -> str:
        if self._behind_proxy:
            forwarded = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
            if forwarded:
                return forwarded[:64]
        return request.client.host if request.client else ""

    # Pages

    async def _front(self, _: Request) -> Response:
        return self._html("front.html")

    async def _page(self, request: Request) -> Response:
        """The same for every link that is whole; what is behind it the page asks for."""
        try:
            Locator.parse(request.path_params["locator"])
        except BadLink:
            return self._html("mangled.html", 400)
        return self._html("page.html")

    async def _nothing(self, _: Request) -> Response:
        return self._html("nothing.html", 404)

    def _html(self, name: str, status: int = 200) -> Response:
        text = self._pages[name].replace(b"{base}", self._base.encode())
        return Response(text, status, media_type=_TYPES["html"])

    async def _worker(self, _: Request) -> Response:
        return Response(self._pages["worker.js"], media_type=_TYPES["js"], headers={"cache-control": "no-cache"})

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        kind = name.rpartition(".")[2]
        if name not in self._pages or kind == "html":
            return await self._nothing(request)
        return Response(self._pages[name], media_type=_TYPES[kind], headers={"cache-control": "no-cache"})

    async def _robots(self, _: Request) -> Response:
        return Response("User-agent: *\nDisallow: /\n", media_type="text/plain")

    # Sealed bytes

    async def _record(self, request: Request) -> Response:
        locator = Locator.parse(request.path_params["locator"])

        async def found() -> bytes:
            return (await self._records.newest(locator)).raw

        return await self._counted(request, locator, found)

    async def _load(self, request: Request) -> Response:
        wanted = await _body(request)
        try:
            locator = Locator.parse(_text(wanted, "locator"))
            depot, key = Address.parse(_text(wanted, "depot")), unpack_key(_text(wanted, "key"))
            offset, length = _number(wanted, "offset", MAX_NUMBER), _number(wanted, "length", MAX_LOAD)
        except (UsageError, BadCapability):
            return _failure("mangled")

        async def found() -> bytearray:
            named = await self._records.depots(locator)
            if depot not in named:
                raise NotPermitted("the share's record does not name the depot")
            return await self._relay.load(depot, key, offset, length, named[depot])

        return await self._counted(request, locator, found, length)

    async def _counted(
        self, request: Request, locator: Locator, get: Callable[[], Awaitable[bytes | bytearray]], size: int = 0
    ) -> Response:
        """What `get` gives, within the limits of who asks and of the link, until it has gone out."""
        address = self._address(request)
        if not self._gate.begin_load(address, locator.render(), trio.current_time(), size):
            return _failure("busy" if self._gate.has_all(address, locator.render()) else "full")
        over = partial(self._gate.end_load, address, locator.render(), size)
        try:
            data = await get()
        except BaseException:
            over()
            raise
        more = max(0, len(data) - size)
        if not self._gate.more(address, locator.render(), more):
            over()
            return _failure("full")
        return SealedBytes(data, partial(self._gate.end_load, address, locator.render(), size + more))


def base_of(public_url: str | None) -> str:
    """The path of a URL, with a slash at both ends. UsageError when it is no URL of a gateway."""
    if public_url is None:
        return "/"
    parts = urlsplit(public_url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{public_url}: not a URL such as https://files.example.org/")
    path = parts.path.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9._~/-]*", path):
        raise UsageError(f"{public_url}: its path has characters that a gateway's path cannot have")
    return f"/{path}/" if path else "/"


async def _body(request: Request) -> Mapping[str, Any]:
    """A small JSON object; an empty one when it is none."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY:
            return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(wanted: Mapping[str, Any], name: str) -> str:
    value = wanted.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text")
    return value


def _number(wanted: Mapping[str, Any], name: str, most: int) -> int:
    value = wanted.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise UsageError(f"{name} must be a number")
    return value


def _failure(reason: str, wait: float = 0.0) -> Response:
    """Busy: who asks has too much; full: others have. To a page both are the same."""
    headers, word = {}, reason
    if reason in ("busy", "full"):
        headers, word = {"retry-after": str(max(1, round(wait)))}, "busy"
    return Response(json.dumps({"error": word}), _STATUS[reason], headers, media_type="application/json")
