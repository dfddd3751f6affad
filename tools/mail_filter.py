"""ibpfs mail-filter: large attachments as links, for all mail of a server."""

import logging
import signal
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING

import click

from ibpfs.config import parse_size
from ibpfs.errors import UsageError
from ibpfs.mail.handling import handle
from ibpfs.mail.settings import load_settings, parse_host
from ibpfs_tools.commands import command
from ibpfs_tools.mail import settings_options
from ibpfs_tools.mail_sharing import MountSharer

if TYPE_CHECKING:
    from ibpfs.mail.filtering import Filter


@command("mail-filter")
@click.option("--listen", default="127.0.0.1:10025", show_default=True, metavar="HOST:PORT",
              help="Where mail comes in.")
@click.option("--next", "next_hop", default="127.0.0.1:10026", show_default=True, metavar="HOST:PORT",
              help="The SMTP server that mail goes back to.")
@click.option("--allow", multiple=True, metavar="NETWORK", default=("127.0.0.0/8", "::1/128"), show_default=True,
              help="Who may bring mail; may be given several times.")
@click.option("--max-size", default="2G", show_default=True, metavar="SIZE", help="Of a message.")
@click.option("--connections", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N",
              help="At a time.")
@settings_options
def mail_filter(
    listen: str, next_hop: str, allow: tuple[str, ...], max_size: str, connections: int, config: str | None,
    **said: str | None,
) -> None:  # fmt: skip
    """Serve as the content filter of a mail server: an SMTP proxy that makes links of large attachments.

    Takes messages by SMTP (Postfix: content_filter, see docs/mail.md) and gives them back by SMTP on another port. A
    message counts as taken only when the next server has taken it; otherwise the one before keeps it and tries again.
    It is not a milter in Sendmail's sense: those get the message from the server and cannot store it for long.

    Runs in the foreground, logs to standard error, ends on SIGTERM when the messages in its hands have gone on.
    """  # fmt: skip
    import asyncio  # slow to import, like aiosmtpd, and needed here only

    from ibpfs.mail.filtering import Filter, Limits

    settings = load_settings(config).over(said)
    sharer = MountSharer(settings)
    limits = Limits(parse_size(max_size), connections, allowed=tuple(map(_network, allow)))
    rewrite = partial(handle, rules=settings.rules, sharer=sharer, defer=settings.on_error == "defer")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd's, with every address
    place = parse_host(listen, 10025)
    asyncio.run(_serve(Filter(parse_host(next_hop, 25), rewrite, sharer, limits), place))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise UsageError(f"{text!r} is no network; write for example 192.0.2.0/24") from None


async def _serve(one: "Filter", place: tuple[str, int]) -> None:
    import asyncio

    from ibpfs.mail.filtering import serving

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(one, *place) as port:
        click.echo(f"ibpfs mail-filter ready {place[0]}:{port}")
        await stopped.wait()
