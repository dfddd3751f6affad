"""ibpfs mail: send a message, its large attachments as links."""

import sys
from collections.abc import Callable
from typing import Any

import click

from ibpfs.config import format_size
from ibpfs.mail.handling import handle
from ibpfs.mail.planning import make_plan
from ibpfs.mail.sendmail_words import Invocation
from ibpfs.mail.settings import Settings, load_settings
from ibpfs.mail.spooled import pieces
from ibpfs.mail.structure import Buffer, scan
from ibpfs_tools.commands import command
from ibpfs_tools.mail_sharing import MountSharer
from ibpfs_tools.mailing import Sending, received, sysexits

_OPTIONS = (
    click.option("--config", metavar="FILE", envvar="IBPFS_MAIL_CONFIG",
                 help="Settings for what is not said here.  [default: mail.toml in ~/.config/ibpfs or /etc/ibpfs]"),
    click.option("--volume", metavar="VOLUME", help="Where files go.  [default: the volume that is mounted]"),
    click.option("--threshold", metavar="SIZE", help="Files above it become links.  [default: 5M]"),
    click.option("--expires", metavar="DURATION", help="How long links hold.  [default: 30d]"),
    click.option("--gateway", metavar="URL", envvar="IBPFS_GATEWAY", help="Links go through it, for browsers."),
    click.option("--on-error", type=click.Choice(["send", "defer"]),
                 help="When a file cannot become a link: send the message as it is, or not now.  [default: send]"),
    click.option("--local-links", type=click.Choice(["refuse", "send"]),
                 help="Links to depots of this machine alone, which open nowhere else: an error, or sent all the same."
                      "  [default: refuse]"),
    click.option("--signed", type=click.Choice(["keep", "wrap"]),
                 help="Messages that are signed or encrypted: leave them alone, or send a link to the whole message."
                      "  [default: keep]"),
)  # fmt: skip


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what mail.toml has, too."""
    for add in reversed(_OPTIONS):
        function = add(function)
    return function


@command("mail")
@click.argument("recipients", nargs=-1, metavar="[RECIPIENT]...")
@click.option("-t", "reads_recipients", is_flag=True, help="Also those in the message's To, Cc and Bcc.")
@click.option("-f", "sender", metavar="ADDRESS", help="Whom to tell when it cannot be delivered.")
@click.option("-i", "ignores_dots", is_flag=True, help="A line with nothing but a dot does not end the message.")
@settings_options
@click.option("--sendmail", metavar="PATH", help="Who takes the message.  [default: /usr/sbin/sendmail]")
@click.option("--smarthost", metavar="HOST[:PORT]", help="Send it to this SMTP server instead.")
@click.option("--stdout", "to_stdout", is_flag=True, help="Write the message to standard output instead.")
@click.option("--dry-run", is_flag=True, help="Only say what would become a link, and what would not.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when all is well.")
def mail(
    recipients: tuple[str, ...],
    reads_recipients: bool,
    sender: str | None,
    ignores_dots: bool,
    config: str | None,
    to_stdout: bool,
    dry_run: bool,
    quiet: bool,
    **said: str | None,
) -> None:
    """Send the message on standard input, its large attachments as links.

    Text, small attachments and what is shown in the text stay as they are, byte for byte; in the place of each large
    file stand its name, size and link. Signed messages are left alone. See also ibpfs-sendmail, for mail programs.

    Exit codes are those of sysexits.h: 75 try again later, 69 refused, 64 wrong call; nobody has the message then.
    """
    with sysexits():
        settings = load_settings(config).over(said)
    asked = Invocation((), recipients, sender, reads_recipients, ignores_dots)
    if dry_run or to_stdout:
        with received(sys.stdin.buffer, asked) as data:
            _foretell(data, settings) if dry_run else _print(data, settings)
        return
    handled = Sending(settings, _with_words(asked)).send(sys.stdin.buffer)
    for line in () if quiet else handled.said:
        click.echo(line, err=True)


def _with_words(asked: Invocation) -> Invocation:
    """What a sendmail is to be called with."""
    words = ["-i", *([] if asked.sender is None else ["-f", asked.sender]), *(["-t"] if asked.reads_recipients else [])]
    return Invocation((*words, "--", *asked.recipients), asked.recipients, asked.sender, asked.reads_recipients,
                      asked.ignores_dots)  # fmt: skip


def _foretell(data: Buffer, settings: Settings) -> None:
    plan = make_plan(data, scan(data), settings.rules)
    for one in plan.attachments:
        click.echo(f"link: {one.name} ({format_size(one.size)})")
    for line in plan.kept:
        click.echo(f"stays: {line}")


def _print(data: Buffer, settings: Settings) -> None:
    with sysexits():
        handled = handle(data, settings.rules, MountSharer(settings), defer=settings.on_error == "defer")
    for line in handled.said:
        click.echo(line, err=True)
    for piece in pieces(handled.message):
        sys.stdout.buffer.write(piece)
