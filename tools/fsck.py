"""fsck.ibpfs: check a volume, and mend it; also what fsck(8) calls as /sbin/fsck.ibpfs."""

import re
import sys

import click

from ibpfs_tools import exits
from ibpfs_tools.commands import command
from ibpfs_tools.unlocking import Secrets, secret_options

#: fsck(8)
CLEAN, MENDED, LEFT = 0, 1, 4

EPILOG = """\b
Exit codes are those of fsck(8): 0 nothing wrong, 1 everything that was wrong is mended,
4 something is left as it was, 8 the check could not be done, 16 wrong call, 32 interrupted.
"""


@command("fsck.ibpfs", epilog=EPILOG)
@click.argument("volume")
@click.option("--data", is_flag=True, help="Load and verify every replica from the depots, too.")
@click.option("-a", "-p", "automatic", is_flag=True, help="Mend what can be mended without a question.")
@click.option("-y", "yes", is_flag=True, help="The same.")
@click.option("-n", "nothing", is_flag=True, help="Change nothing, only say what is wrong.")
@click.option("-C", "progress", is_flag=True, help="Show progress; fsck(8) may add a descriptor (-C0).")
@click.option("-f", "force", is_flag=True, help="Accepted: a check is always complete.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when nothing is wrong.")
@secret_options
def fsck(
    volume: str,
    data: bool,
    automatic: bool,
    yes: bool,
    nothing: bool,
    progress: bool,
    force: bool,
    quiet: bool,
    secrets: Secrets,
) -> int:
    """Check VOLUME, which must not be mounted: the exNode store's invariants and, with --data, every stored byte.

    Mends what can be mended, unless -n is given.
    """
    raise NotImplementedError


def main() -> None:
    # click knows no option with a value glued to it that may also be absent
    words = ["-C" if re.fullmatch(r"-C-?\d+", word) else word for word in sys.argv[1:]]
    exits.run(fsck, exits.FSCK, words)
