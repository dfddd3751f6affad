"""ibpfs: the command with the verbs."""

from importlib import import_module

import click

from ibpfs import __version__
from ibpfs_tools import exits
from ibpfs_tools.commands import CONTEXT

EPILOG = """\b
Exit codes: 0 done, 1 not done, 2 wrong call.
"""

#: `some-verb` is `some_verb` in the module of that name.
VERBS = (
    "status", "stat", "flush", "drop-cache", "compact", "snapshot", "trash", "warm", "warm-cap", "repair", "doctor",
    "depots", "policy", "recovery-key", "recover",
    "share", "get", "stage", "gateway", "mail", "mail-filter", "thunderbird",
    "upload", "download", "ls", "augment", "trim", "refresh", "modify", "exnode", "export", "import",
)  # fmt: skip


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


@click.group("ibpfs", cls=Verbs, context_settings=CONTEXT, epilog=EPILOG, no_args_is_help=False)
@click.version_option(__version__, prog_name="ibpfs", message="%(prog)s %(version)s")
def ibpfs() -> None:
    """Look after volumes of ibpfs. Volumes are named by their path, their name, or where they are mounted."""


def main() -> None:
    exits.run(ibpfs, exits.COMMAND)
