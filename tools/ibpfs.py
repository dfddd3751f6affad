"""ibpfs: the command with the verbs."""

import click

from ibpfs import __version__
from ibpfs_tools import exits
from ibpfs_tools.augment import augment
from ibpfs_tools.commands import CONTEXT
from ibpfs_tools.compact import compact
from ibpfs_tools.depots import depots
from ibpfs_tools.doctor import doctor
from ibpfs_tools.download import download
from ibpfs_tools.drop_cache import drop_cache
from ibpfs_tools.exnode import exnode
from ibpfs_tools.export import export
from ibpfs_tools.flush import flush
from ibpfs_tools.gateway import gateway
from ibpfs_tools.get import get
from ibpfs_tools.import_ import import_
from ibpfs_tools.ls import ls
from ibpfs_tools.mail import mail
from ibpfs_tools.mail_filter import mail_filter
from ibpfs_tools.modify import modify
from ibpfs_tools.policy import policy
from ibpfs_tools.recover import recover
from ibpfs_tools.recovery_key import recovery_key
from ibpfs_tools.refresh import refresh
from ibpfs_tools.repair import repair
from ibpfs_tools.share import share
from ibpfs_tools.snapshot import snapshot
from ibpfs_tools.stage import stage
from ibpfs_tools.stat import stat
from ibpfs_tools.status import status
from ibpfs_tools.thunderbird import thunderbird
from ibpfs_tools.trash import trash
from ibpfs_tools.trim import trim
from ibpfs_tools.upload import upload
from ibpfs_tools.warm import warm
from ibpfs_tools.warm_cap import warm_cap

EPILOG = """\b
Exit codes: 0 done, 1 not done, 2 wrong call.
"""


@click.group("ibpfs", context_settings=CONTEXT, epilog=EPILOG, no_args_is_help=False)
@click.version_option(__version__, prog_name="ibpfs", message="%(prog)s %(version)s")
def ibpfs() -> None:
    """Look after volumes of ibpfs. Volumes are named by their path, their name, or where they are mounted."""


for verb in (status, stat, flush, drop_cache, compact, snapshot, trash, warm, warm_cap, repair, doctor, depots, policy,
             recovery_key, recover):
    ibpfs.add_command(verb)
for verb in (share, get, stage, gateway, mail, mail_filter, thunderbird):
    ibpfs.add_command(verb)
for verb in (upload, download, ls, augment, trim, refresh, modify, exnode, export, import_):
    ibpfs.add_command(verb)


def main() -> None:
    exits.run(ibpfs, exits.COMMAND)
