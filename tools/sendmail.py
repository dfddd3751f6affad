"""ibpfs-sendmail: what a mail program calls instead of sendmail. Understands sendmail's words, and no others."""

import os
import sys

import click

from ibpfs.errors import UsageError
from ibpfs.mail.delivery import Program
from ibpfs.mail.sendmail_words import Invocation, parse_words
from ibpfs.mail.settings import Settings, load_settings
from ibpfs_tools import exits
from ibpfs_tools.commands import version_option
from ibpfs_tools.exits import ExitCodes, ExitWith
from ibpfs_tools.mailing import Sending, sysexits

#: sysexits.h: whatever happens that is not plainly for good, the mail program is to try again.
CODES = ExitCodes(
    failure=os.EX_TEMPFAIL,
    usage=os.EX_USAGE,
    system=os.EX_TEMPFAIL,
    internal=os.EX_SOFTWARE,
    interrupted=os.EX_TEMPFAIL,
)


class _Sendmail(click.Command):
    """--help and --version are ours; all other words are sendmail's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args in (["-h"], ["--help"], ["--version"]):
            return super().parse_args(ctx, args)
        ctx.params["words"] = args
        return []


@click.command("ibpfs-sendmail", cls=_Sendmail, context_settings={"help_option_names": ["-h", "--help"]})
@version_option("ibpfs-sendmail")
@click.argument("words", nargs=-1, metavar="[SENDMAIL'S OPTIONS] [RECIPIENT]...")
def sendmail(words: list[str]) -> None:
    """Send the message on standard input, its large attachments as links: `ibpfs mail` for mail programs.

    Takes the options of sendmail and passes them on with the message; what is to become a link and where mail goes is
    in mail.toml (see docs/mail.md). Calls that send nothing (-bs, -bp, -bi, -q and the like) go to sendmail as they
    are.
    """
    with sysexits():
        settings = load_settings()
    asked = parse_words(list(words))
    if asked.other_mode:
        _pass_on(settings, asked)
    handled = Sending(settings, asked).send(sys.stdin.buffer)
    for line in handled.said[len(handled.shares) :]:  # mail programs show this to a person only now and then
        click.echo(f"ibpfs-sendmail: {line}", err=True)


def _pass_on(settings: Settings, asked: Invocation) -> None:
    with sysexits():
        _become(settings, asked)


def _become(settings: Settings, asked: Invocation) -> None:
    next_hop = settings.next_hop
    if not isinstance(next_hop, Program):
        raise UsageError("with a smarthost, ibpfs-sendmail sends messages and does nothing else")
    try:
        os.execve(next_hop.path, [next_hop.path, *asked.words], next_hop.environment())
    except OSError as error:
        raise ExitWith(f"{next_hop.path}: {error.strerror}", os.EX_TEMPFAIL) from None


def main() -> None:
    exits.run(sendmail, CODES)
