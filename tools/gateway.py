"""ibpfs gateway: a web server through which browsers open links."""

import logging
import resource
from functools import partial
from pathlib import Path

import click

from ibpfs.depot.capability import render_place
from ibpfs.errors import UsageError
from ibpfs_tools.commands import command
from ibpfs_tools.depot_types import Place
from ibpfs_tools.logs import log_to_terminal

EPILOG = """\b
A browser opens https links alone, and those of this machine: put a web server with a certificate in front
  (proxy_pass http://127.0.0.1:8080; and --behind-proxy here), or give --certificate.
It goes to depots that a share's record names, on public addresses and ports from 1024 on, and where --allow lets it;
all that it hands out is sealed.
"""


@command("gateway", epilog=EPILOG)
@click.option("--listen", type=Place(), default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT",
              help="Where to answer; port 0 is one of the system's choice.")
@click.option("--public-url", metavar="URL", help="How it is reached from outside; its path is that of all pages.")
@click.option("--allow", multiple=True, metavar="NETWORK[:PORT[-PORT]]",
              help="Depots that it may speak to beside those on public addresses; may be given several times.")
@click.option("--allowed-only", is_flag=True, help="Speak to no other depots than those of --allow.")
@click.option("--behind-proxy", is_flag=True,
              help="Whom to count requests of stands last in X-Forwarded-For. Only where a proxy always writes it.")
@click.option("--rate", type=click.FloatRange(min=1), default=100, show_default=True, metavar="N",
              help="Requests per second of one address in the long run.")
@click.option("--certificate", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Speak https with this certificate (PEM).")
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Its private key, where the certificate's file has none.")
@click.option("-q", "--quiet", is_flag=True, help="No line for each request.")
def gateway(
    listen: tuple[str, int], public_url: str | None, allow: tuple[str, ...], allowed_only: bool, behind_proxy: bool,
    rate: float, certificate: Path | None, key: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Let browsers open links: a page that fetches, opens and saves what was shared.

    Keys stay in the browser: what follows a link's '#' is never sent. The log names no capability.
    """
    log_to_terminal()
    logging.getLogger().setLevel(logging.WARNING if quiet else logging.INFO)

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each visitor has some connections

    import trio  # slow to import, as all of it, and needed here only

    from ibpfs.depot.server.reach import Places
    from ibpfs.gateway.limits import Limits
    from ibpfs.gateway.serving import Settings, serve

    if allowed_only and not allow:
        raise UsageError("--allowed-only: say with --allow which depots it may speak to")
    settings = Settings(
        listen, public_url, [Places.parse(text) for text in allow], allowed_only, behind_proxy,
        Limits(rate=rate, burst=4 * rate), certificate, key,
    )  # fmt: skip
    trio.run(serve, settings, partial(_tell, "https" if certificate else "http"))


def _tell(scheme: str, place: tuple[str, int]) -> None:
    click.echo(f"listening on {scheme}://{render_place(*place)}/")
