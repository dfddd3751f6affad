"""A gateway's sockets and its end."""

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hypercorn.trio
import trio
from hypercorn.config import Config

from ibpfs.depot.server.listeners import listen_tcp
from ibpfs.depot.server.reach import Places
from ibpfs.errors import UsageError
from ibpfs.gateway.app import Gateway
from ibpfs.gateway.limits import Limits
from ibpfs.gateway.relay import Relay

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

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
    config, app = _config(settings, listener.sock.detach()), cast("ASGIFramework", gateway.app())
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def stop() -> None:
            await anext(aiter(signals))

        ready(listener.place)
        async with relay.closing():
            await hypercorn.trio.serve(app, config, shutdown_trigger=stop, mode="asgi")


def _config(settings: Settings, descriptor: int) -> Config:
    config = Config()
    config.bind = [f"fd://{descriptor}"]
    config.accesslog = None  # its lines would hold capabilities; the gateway writes its own
    config.errorlog = logging.getLogger("ibpfs.gateway.http")
    config.include_server_header = False
    config.h11_max_incomplete_size = 64 * 1024  # a link to many recipients is long, but nothing else is
    config.keep_alive_timeout = 30
    config.read_timeout = 60
    config.graceful_timeout = config.shutdown_timeout = _GRACE
    if settings.certificate is not None:
        config.certfile = str(settings.certificate)
        config.keyfile = str(settings.key or settings.certificate)
        try:
            config.create_ssl_context()
        except OSError as error:
            raise UsageError(f"{settings.certificate}: no certificate with its key ({error.strerror})") from None
    return config
