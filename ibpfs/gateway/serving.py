"""A gateway's sockets and its end."""

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Receive, Scope, Send

from ibpfs.depot.server.listeners import listen_tcp
from ibpfs.depot.server.reach import Places
from ibpfs.errors import UsageError
from ibpfs.gateway.app import Gateway
from ibpfs.gateway.limits import Limits
from ibpfs.gateway.relay import Relay

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

_log = logging.getLogger(__name__)

#: Seconds that a stop waits for what is under way.
_GRACE = 5.0
#: Names that are looked up at once: strangers choose them, and with them how long that takes.
_LOOKUPS = 200


@dataclass(frozen=True)
class Settings:
    """`listen`: host and port; `allowed`: where it goes beside public addresses, or, with `allowed_only`, instead;
    certificate and key: PEM files."""

    listen: tuple[str, int]
    public_url: str | None = None
    allowed: Sequence[Places] = ()
    allowed_only: bool = False
    behind_proxy: bool = False
    limits: Limits = field(default_factory=Limits)
    certificate: Path | None = None
    key: Path | None = None


async def serve(settings: Settings, ready: Callable[[tuple[str, int]], None]) -> None:
    """Answer until SIGTERM or SIGINT. `ready` is told host and port. Raises UsageError, CannotListen."""
    relay = Relay(settings.allowed, allowed_only=settings.allowed_only)
    gateway = Gateway(relay, settings.limits, settings.public_url, behind_proxy=settings.behind_proxy)
    trio.to_thread.current_default_thread_limiter().total_tokens = _LOOKUPS
    listener = listen_tcp(*settings.listen)
    assert listener.place is not None
    config = _config(settings)
    listeners = [_secured(trio.SocketListener(trio.socket.from_stdlib_socket(listener.sock)), config)]
    app = cast("ASGIFramework", partial(_served, gateway.app()))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        ready(listener.place)
        async with relay.closing(), trio.open_nursery() as connections:
            context = WorkerContext(None)
            handle = partial(_talk, app, config, context)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(partial(trio.serve_listeners, handle, listeners, handler_nursery=connections))
                await anext(aiter(signals))
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + _GRACE


async def _talk(app: "ASGIFramework", config: Config, context: WorkerContext, stream: Any) -> None:
    """One connection. Whatever a stranger makes of it, and of the library, ends it alone, and not the gateway."""
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    try:
        await TCPServer(wrapped, config, context, ConnectionState({}), stream)
    except Exception as error:
        _log.info("a connection broke: %s", _kinds(error))


async def _served(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """A visitor who went away in the middle of an answer is no error of ours."""
    try:
        await app(scope, receive, send)
    except (trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        _log.info("a visitor went away: %s", _kinds(error))


def _kinds(error: Exception) -> str:
    """Names alone: what strangers send is not for the log."""
    if isinstance(error, ExceptionGroup):
        return ", ".join(map(_kinds, error.exceptions))
    return type(error).__name__


def _secured(listener: trio.SocketListener, config: Config) -> trio.abc.Listener[Any]:
    context = config.create_ssl_context()
    return listener if context is None else trio.SSLListener(listener, context, https_compatible=True)


def _config(settings: Settings) -> Config:
    config = Config()
    config.accesslog = None  # its lines would hold capabilities; the gateway writes its own
    config.errorlog = logging.getLogger("ibpfs.gateway.http")
    config.include_server_header = False
    config.h11_max_incomplete_size = 64 * 1024  # a link to many recipients is long, but nothing else is
    config.keep_alive_timeout = 30
    config.read_timeout = 60
    if settings.certificate is not None:
        config.certfile = str(settings.certificate)
        config.keyfile = str(settings.key or settings.certificate)
        try:
            config.create_ssl_context()
        except OSError as error:
            raise UsageError(f"{settings.certificate}: no certificate with its key ({error.strerror})") from None
    return config
