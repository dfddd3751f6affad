"""The verbs of the command ibpfs."""

from difflib import get_close_matches
from importlib import import_module

import click

from ibpfs_tools import exits
from ibpfs_tools.commands import CONTEXT, version_option

EPILOG = """\b
Exit codes: 0 done, 1 not done, 2 wrong call.
"""

#: What `ibpfs --help` says: a line for each verb. `some-verb` is `some_verb` in the module of that name.
SECTIONS: dict[str, dict[str, str]] = {
    "Volumes": {
        "status": "how volumes are doing: what waits, which depots, until when",
        "doctor": "what is wrong here, and what to do about it",
        "stat": "where the bytes of a file are",
        "flush": "return when everything is on the depots",
        "drop-cache": "flush, then empty the local cache",
        "compact": "merge slices, pack segments",
        "snapshot": "keep the whole tree as it is now",
        "trash": "what was deleted, and can come back",
    },
    "Copies": {
        "depots": "which depots a volume uses: add, drain, remove",
        "policy": "how many copies a directory's files get, and where",
        "repair": "verify every copy, make up what is lacking",
        "warm": "renew leases, make up copies, release",
        "warm-cap": "let another machine do so, without the keys",
        "recovery-key": "print the string that brings a volume back",
        "recover": "bring a volume back by that string",
    },
    "Links": {
        "share": "make a link to a file or directory; list, revoke",
        "get": "fetch what a link points to",
        "stage": "have depots copy that close to here",
        "gateway": "let browsers open links",
        "mail": "send a message, its large attachments as links",
        "mail-filter": "the same as a mail server's content filter",
        "thunderbird": "the same in Thunderbird",
    },
    "Files on depots without a volume, as exNode documents": {
        "upload": "store a file, write its exNode",
        "download": "fetch the file of an exNode",
        "ls": "what an exNode names, and what depots say of it",
        "augment": "add copies",
        "trim": "remove copies",
        "refresh": "renew leases",
        "modify": "change name, metadata or rights",
        "exnode": "convert and validate exNodes",
        "export": "write an exNode for a file of a volume",
        "import": "make a file on a volume of an exNode",
    },
}

VERBS = tuple(verb for section in SECTIONS.values() for verb in section)
_WIDTH = max(map(len, VERBS))


class Verbs(click.Group):
    """Each verb is imported when it is used: all of them take twice as long as `flush` alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        name = "import_" if cmd_name == "import" else cmd_name.replace("-", "_")
        verb = getattr(import_module(f"ibpfs_tools.{name}"), name)
        assert isinstance(verb, click.Command)
        return verb

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in VERBS and not word.startswith("-") and not ctx.resilient_parsing:
            meant = get_close_matches(word, VERBS, 1)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            raise click.UsageError(f"there is no verb {word!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{verb:<{_WIDTH}}", text) for verb, text in verbs.items()])


@click.group("ibpfs", cls=Verbs, context_settings=CONTEXT, epilog=EPILOG, no_args_is_help=True)
@version_option("ibpfs")
def ibpfs() -> None:
    """Look after volumes of ibpfs. Volumes are named by their path, their name, or where they are mounted."""


def main() -> None:
    exits.run(ibpfs, exits.COMMAND)
