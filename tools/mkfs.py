"""mkfs.ibpfs: make a volume."""

import grp
import os
import pwd
from functools import partial

import click
import trio

from ibpfs.config import Secret, VolumePaths, find_volume
from ibpfs.depot.address import Address
from ibpfs.depot.pinning import fingerprints_of
from ibpfs.errors import UsageError
from ibpfs.exnode_store.checkpoints.recovery_string import dump_recovery, format_text
from ibpfs.exnode_store.creation import CreatedVolume, create_volume, dump_short_recovery
from ibpfs.exnode_store.policies import parse_labels
from ibpfs_tools import exits
from ibpfs_tools.commands import caller, command, has_terminal, read_passphrase_file
from ibpfs_tools.logs import start_logging
from ibpfs_tools.warm import timer_command


@command("mkfs.ibpfs")
@click.argument("volume")
@click.option(
    "--depot",
    "depots",
    multiple=True,
    metavar="ibp[s]://HOST:PORT[,LABEL=VALUE...]",
    help="A depot to keep the bytes on, with labels such as site=knoxville; may be given several times; TLS is used, "
    "and its certificate pinned, where the depot offers it. Without any, the volume brings its own, on this disk.",
)
@click.option("--copies", type=int, help="How many depots hold each byte.  [default: 2, or 1 with one depot]")
@click.option(
    "--min-copies",
    type=int,
    help="How many depots must have a byte before fsync returns.  [default: copies - 1, at least 1]",
)
@click.option(
    "--code",
    metavar="K+M",
    help="Store what is large as K+M shards on as many depots, any K of which give it back, once it is written; such"
    " as 4+2, with half as much again as room for it instead of twice as much.",
)
@click.option("--no-tls", is_flag=True, help="Do not ask depots whether they offer TLS: ibp:// stays without.")
@click.option("--plain", is_flag=True, help="Do not encrypt what is stored on depots; only check it.")
@click.option(
    "--passphrase-file",
    metavar="FILE",
    help="Protect the keys by the passphrase in the first line of FILE ('-': standard input) instead of a key file.",
)
@click.option("--passphrase", "ask", is_flag=True, help="The same, asking for the passphrase.")
@click.option(
    "--owner",
    metavar="USER[:GROUP]",
    help="Owner of the root directory.  [default: who runs this, also through sudo]",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the recovery string only.")
def mkfs(
    volume: str,
    depots: tuple[str, ...],
    copies: int | None,
    min_copies: int | None,
    code: str | None,
    no_tls: bool,
    plain: bool,
    passphrase_file: str | None,
    ask: bool,
    owner: str | None,
    quiet: bool,
) -> None:
    """Make a volume: a directory with an exNode store, keys, and room for spool, cache and an embedded depot.

    VOLUME is a path when it has a slash in it, else a name under ~/.local/share/ibpfs.

    The recovery string is printed once (again with ibpfs recovery-key). It opens the volume when the key file or the
    passphrase is lost, and with it alone ibpfs recover brings the volume back from its depots.
    """
    paths = find_volume(volume, create=True)
    labels = dict(map(_depot, depots))
    depots = tuple(_depot(word)[0] for word in depots)
    pins = trio.run(partial(fingerprints_of, depots, wanted=not no_tls)) if depots else {}
    made = create_volume(
        paths,
        depots=depots,
        fingerprints=pins,
        labels=labels,
        copies=copies,
        min_copies=min_copies,
        code=code,
        plain=plain,
        passphrase=_passphrase(passphrase_file, ask),
        owner=parse_owner(owner) if owner else caller(),
    )
    recovery, trouble, silent = _recovery_string(paths, made)
    for address, why in silent.items():
        reason = f" ({why.removeprefix(f'{address}: ')})" if why else ""
        click.echo(f"mkfs.ibpfs: {address}: does not answer{reason}; nothing is kept there until it does", err=True)
    if quiet:
        click.echo(recovery)
        return
    _tell(paths, made, volume, depots, key_file=not (passphrase_file or ask))
    click.echo(f"recovery string, keep it elsewhere:\n  {recovery}")
    if trouble:
        click.echo(f"no depot has a checkpoint yet, so the string opens the keys alone ({trouble});"
                   f" for one that brings all back: ibpfs recovery-key {volume}")  # fmt: skip
    click.echo(f"mount it with: mount.ibpfs {volume} DIRECTORY")
    for word in depots:
        place = Address.parse(word)
        if word not in pins and str(place) not in silent and not place.is_local:
            click.echo(f"{word}: without TLS, whoever listens on the way can read and delete what is kept there")


def _depot(word: str) -> tuple[str, dict[str, str]]:
    """The address and the labels of a depot as it is given."""
    address, *labels = word.split(",")
    return address, parse_labels(labels)


def _recovery_string(paths: VolumePaths, made: CreatedVolume) -> tuple[str, str, dict[str, str]]:
    """With the first checkpoint, to which it leads; else one that opens the keys alone, and why. And the depots that do
    not answer."""
    from ibpfs.mount import first_recovery

    start_logging(paths)
    told, silent = trio.run(first_recovery, paths, Secret("recovery", made.recovery))
    if isinstance(told, str):
        return format_text(dump_short_recovery(made.recovery)), told.rpartition(": ")[2], silent
    return format_text(dump_recovery(told)), "", silent


def _passphrase(file: str | None, ask: bool) -> bytes | None:
    if file:
        return read_passphrase_file(file)
    if ask:
        if not has_terminal():
            raise UsageError("there is no terminal to ask for the passphrase; give it with --passphrase-file FILE")
        answer: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
        return answer.encode()
    return None


def parse_owner(text: str) -> tuple[int, int]:
    """Return uid and gid of 'USER', 'USER:GROUP', 'UID:GID'; the group defaults to the user's own."""
    user, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        if not user.isdigit():
            raise UsageError(f"there is no user {user!r}") from None
        uid = gid = int(user)
    if group.isdigit():
        gid = int(group)
    elif group:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise UsageError(f"there is no group {group!r}") from None
    return uid, gid


def _tell(paths: VolumePaths, made: CreatedVolume, word: str, depots: tuple[str, ...], key_file: bool) -> None:
    click.echo(f"{paths.root}: a volume ({made.function})")
    if depots:
        few = "one copy, on that depot; for more: ibpfs depots add, then ibpfs policy set DIR copies=2"
        many = f"{made.copies} of {len(depots)} depots hold each byte, {made.min_copies} before fsync returns"
        click.echo(few if len(depots) == 1 else many)
        if made.code:
            click.echo(f"what is large is stored as {made.code} shards on as many depots, once it is written")
        click.echo(f"their leases end: a mount renews them, or ibpfs warm {word}; to have systemd do so every hour:")
        click.echo(f"  {timer_command(paths.root, for_all=os.geteuid() == 0)}")
    else:
        click.echo("one copy, on this disk; for more, make a volume with --depot ibp://HOST:PORT")
    if key_file:
        click.echo(f"the key is {paths.key} (mode 0600): this computer is trusted, depots are not")


def main() -> None:
    exits.run(mkfs, exits.COMMAND)
