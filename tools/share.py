"""ibpfs share: links to files of a mounted volume."""

import io
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ibpfs.config import VolumePaths, format_size, parse_duration, parse_size
from ibpfs.control import Refused, call
from ibpfs.depot.address import Address
from ibpfs.errors import UsageError, VolumeError
from ibpfs.exnode_store.lors.outputs import refuse_existing, write_document
from ibpfs_tools import mounts
from ibpfs_tools.asking import ask, find_asked
from ibpfs_tools.commands import CONTEXT, complete_volume, has_terminal, read_passphrase_file, version_option
from ibpfs_tools.exits import COMMAND, each
from ibpfs_tools.exnodes import printable
from ibpfs_tools.shared import text_of
from ibpfs_tools.unlocking import Secrets, secret_options


class _Sharing(click.Group):
    """Without a verb, `make`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help", "--version"):
            args = ["make", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return super().shell_complete(ctx, incomplete) or [CompletionItem(incomplete, type="file")]


@click.group("share", cls=_Sharing, context_settings=CONTEXT, no_args_is_help=True)
@version_option("ibpfs share")
def share() -> None:
    """Links to files and directories of a mounted volume. `ibpfs share PATH` makes one.

    A link lets whoever has it read what PATH is now, until it expires or is revoked; this machine may be off. A file
    whose name is one of the verbs is written ./NAME.
    """


@share.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--expires", default="30d", show_default=True, metavar="DURATION", help="How long the link holds.")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase that is needed beside the link.")
@click.option("--passphrase-file", metavar="FILE",
              help="The passphrase is the first line of FILE ('-': standard input).")
@click.option("--no-browser", is_flag=True,
              help="Make the passphrase harder to guess (Argon2id), so that browsers cannot open the link.")
@click.option("--to", "recipients", multiple=True, metavar="age1...|ssh-...",
              help="Only who has the key of this age or ssh recipient can use the link; may be given several times.")
@click.option("--note", default="", metavar="TEXT", help="Shown to the receiver.")
@click.option("--name", metavar="NAME", help="What the receiver's file is called.  [default: PATH's name]")
@click.option("--near", metavar="DEPOT", help="Have the depots copy it to this one as well, ibp[s]://HOST:PORT.")
@click.option("-c", "--copies", type=click.IntRange(1, 16), default=1, show_default=True, metavar="N",
              help="On so many depots at least, as far as the volume has them.")
@click.option("--copy-limit", default="1G", show_default=True, metavar="SIZE",
              help="Bytes at most of private copies, where a depot gives no window on the volume's own or they must be"
                   " sealed anew.")
@click.option("--no-hash", is_flag=True, help="Do not read the files to hash them; every frame is verified anyway.")
@click.option("--gateway", metavar="URL", envvar="IBPFS_GATEWAY",
              help="Print the link as one of this gateway, for browsers.  [default: $IBPFS_GATEWAY]")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the link to a .ibpfs file (readable by you alone).")
@click.option("--qr", is_flag=True, help="Print it as a QR code, too.")
@click.option("--json", "as_json", is_flag=True, help="For scripts; keys as in docs/sharing.md.")
@click.option("-q", "--quiet", is_flag=True, help="Print the link alone, and what is left out.")
def make(
    path: Path,
    expires: str,
    passphrase: bool,
    passphrase_file: str | None,
    no_browser: bool,
    recipients: tuple[str, ...],
    note: str,
    name: str | None,
    near: str | None,
    copies: int,
    copy_limit: str,
    no_hash: bool,
    gateway: str | None,
    output: Path | None,
    qr: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a link to PATH, a file or directory on a mounted volume, as it is now."""
    if output is not None:
        refuse_existing(output, overwrite=False, advice="")
    _check_gateway(gateway)
    paths = mounts.volume_holding(path)
    if not path.is_file() and not path.is_dir():
        raise UsageError(f"{path}: neither a file nor a directory")
    secret = _passphrase(passphrase, passphrase_file)
    found: dict[str, Any] = ask(
        paths, "share", Secrets(), title=f"sharing {path.name}", quiet=quiet or as_json, ino=path.stat().st_ino,
        path=_inside(path), name=name or mounts.absolute(str(path)).name or paths.root.name, note=note,
        seconds=parse_duration(expires), passphrase=secret, for_browsers=not no_browser, recipients=list(recipients),
        near=None if near is None else str(Address.parse(near)), copies=copies, copy_limit=parse_size(copy_limit),
        hashes=not no_hash, gateway=gateway,
    )  # fmt: skip
    if output is not None:
        write_document(output, document(found), overwrite=False)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(found["link"])
    if qr:
        click.echo(qr_code(found["link"]))
    for line in _left_out(found) if quiet else _said(found):
        click.echo(line, err=True)


def _passphrase(wanted: bool, file: str | None) -> str | None:
    if file is not None:
        return text_of(read_passphrase_file(file))
    if not wanted:
        return None
    if not has_terminal():
        raise UsageError("there is no terminal to ask for the passphrase; give it with --passphrase-file FILE")
    typed: str = click.prompt("Passphrase for the link", hide_input=True, confirmation_prompt=True, err=True)
    return typed


def _check_gateway(gateway: str | None) -> None:
    if gateway is None:
        return
    if not gateway.startswith(("https://", "http://")) or any(letter in gateway for letter in "#?<>\"' "):
        raise UsageError(f"{gateway[:60]}: a gateway is https://HOST[/PATH]")


def _inside(path: Path) -> str:
    """Where it is in its volume, whatever that is mounted on."""
    place = mounts.absolute(str(path))
    entry = mounts.mount_holding(place) or mounts.mount_holding(place.resolve())
    assert entry is not None
    inside = place if place.is_relative_to(entry.mountpoint) else place.resolve()
    return f"/{inside.relative_to(entry.mountpoint)}".removesuffix("/.")


def _nearest(path: Path) -> Path:
    """What is still there of a path: links outlive what was shared."""
    place = mounts.absolute(str(path))
    return next(one for one in (place, *place.parents) if one.is_dir())


def document(found: dict[str, Any]) -> bytes:
    """A .ibpfs file."""
    row = {"format": "ibpfs-link/1", **{key: found[key] for key in ("link", "name", "size", "expires")}}
    return json.dumps(row, indent=1).encode() + b"\n"


def qr_code(link: str) -> str:
    import segno  # slow to import, and needed here only

    out = io.StringIO()
    try:
        segno.make(link, error="l", micro=False).terminal(out, compact=True)
    except segno.DataOverflowError:
        raise UsageError("the link is too long for a QR code") from None
    return out.getvalue()


def _said(found: dict[str, Any]) -> Iterator[str]:
    what = f"{found['files']} files, " if found["type"] == "directory" else ""
    size, until = format_size(found["size"]), _when(found["expires"])
    yield f"{printable(found['name'])}: {what}{size}, until {until}, share {found['id']}"
    if found["hold_until"] < found["expires"] - 60:
        yield (f"with this machine off it is kept until {_when(found['hold_until'])} (a depot leases for no longer);"
               " a mount renews that, and so does ibpfs warm")  # fmt: skip
    yield from _copied(found["copied_bytes"], found.get("depot_copied_bytes", 0))
    yield found["revocation"]
    if found["this_machine_only"]:
        yield ("some or all of it is on depots of this machine alone: others cannot reach them (ibpfs depots add names"
               " another depot)")  # fmt: skip
    yield from _left_out(found)


def _left_out(found: dict[str, Any]) -> Iterator[str]:
    """Said in any case: who gets the link misses them."""
    if found["left_out"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["left_out_kinds"].items())
        yield f"left out: {len(found['left_out'])} ({kinds}), such as {printable(found['left_out'][0])}"


def _copied(size: int, by_depots: int) -> Iterator[str]:
    if by_depots:
        yield f"{format_size(by_depots)} were copied for this link by the depots themselves, sealed as they are"
    if size > by_depots:
        yield f"{format_size(size - by_depots)} were copied, sealed anew, for this link"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


# --- the other verbs

_UNKNOWN = re.compile("no share of this volume|knows no command")

_volume = click.option("--volume", shell_complete=complete_volume, metavar="VOLUME",
                       help="Of this volume.  [default: of all that are mounted]")  # fmt: skip
_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@share.command("list")
@_volume
@_json
@secret_options
def list_(volume: str | None, as_json: bool, secrets: Secrets) -> None:
    """List links that hold, and until when."""
    found = []
    for paths in _volumes(volume):
        try:
            rows = _ask_owner(volume, paths, secrets, "share-list")
            found += [row | {"volume": str(paths.root)} for row in rows]
        except (Refused, VolumeError) as error:
            if volume is not None:
                raise
            click.echo(f"{paths.root}: {error}", err=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for row in found:
        lock = ", passphrase" if row["passphrase"] else ", for recipients" if row["recipients"] else ""
        state = "" if row["state"] == "active" else f" ({row['state']})"
        click.echo(f"{row['id']}  until {_when(row['expires'])}{state}  {format_size(row['size'])}{lock}"
                   f"  {printable(row['path'])}")  # fmt: skip


@share.command()
@click.argument("share_id", metavar="ID")
@_volume
@_json
@secret_options
def info(share_id: str, volume: str | None, as_json: bool, secrets: Secrets) -> None:
    """Show a share: its link, what it points to, where that lies, what revoking does."""
    row = _ask_one(volume, secrets, "share-info", share_id)
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    click.echo(row["link"])
    for line in _said(row | {"left_out": []}):
        click.echo(line)
    click.echo(f"of {printable(row['path'])}; on {', '.join(row['depots']) or 'no depot'}")


@share.command()
@click.argument("share_id", metavar="ID")
@click.argument("duration")
@_volume
@_json
@secret_options
def extend(share_id: str, duration: str, volume: str | None, as_json: bool, secrets: Secrets) -> None:
    """Let a link hold until DURATION from now. The link stays the same."""
    row = _ask_one(volume, secrets, "share-extend", share_id, seconds=parse_duration(duration))
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    click.echo(f"{share_id}: until {_when(row['expires'])}")
    for trouble in row["troubles"]:
        click.echo(f"{share_id}: {trouble}", err=True)


@share.command()
@click.argument("share_ids", metavar="ID...", nargs=-1)
@click.option("--path", type=click.Path(path_type=Path), metavar="PATH", help="All links to PATH and what is below it.")
@_volume
@_json
@secret_options
def revoke(share_ids: tuple[str, ...], path: Path | None, volume: str | None, as_json: bool, secrets: Secrets) -> None:
    """End links. Files, and other links to them, stay.

    Says what each depot has ended, and what it has not; that is asked for again by a mount, until 30 days after it
    would have expired. Exit code 1 when something is left.
    """
    if bool(share_ids) == (path is not None):
        raise UsageError("say which links: their ids, or --path PATH")
    if path is not None:
        rows = ask(mounts.volume_holding(_nearest(path)), "share-revoke", secrets, path=_inside(path))
        _say_ended(rows, as_json)
    else:
        rows = []

        def end(one: str) -> None:
            rows.extend(_ask_one(volume, secrets, "share-revoke", "", ids=[one]))

        try:
            each(share_ids, str, end, COMMAND)
        finally:
            _say_ended(rows, as_json)
    if any(row["left"] for row in rows):
        sys.exit(1)


def _say_ended(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    for row in rows:
        if not as_json:
            click.echo(revoked(row))
        for one in row["left"]:
            click.echo(f"{row['id']}: {remnant(one)}", err=True)


_ENDED = {"window": "windows on the volume's allocations are closed", "copy": "private copies of {size} are deleted",
          "record": "its record is deleted"}  # fmt: skip
_LEFT = {
    "window": "windows there are not closed ({why}): who has opened the link can read {size} by them until {until}",
    "copy": "private copies there are not deleted ({why}): who has opened the link can read {size} of it until {until}",
    "record": "the record there is not deleted ({why}): who has the link can open it until {until}",
}


def revoked(row: dict[str, Any]) -> str:
    """Return what depots say that they have ended, as a line for a person."""
    done = []
    for what, text in _ENDED.items():
        there = [one for one in row["ended"] if one["what"] == what]
        if there:
            size = format_size(sum(one["bytes"] for one in there))
            done.append(f"{text.format(size=size)} at {', '.join(one['depot'] for one in there)}")
    state = "not revoked everywhere" if row["left"] else "revoked"
    said = "; ".join(done) or ("nothing has ended" if row["left"] else "depots had nothing of it any more")
    return f"{row['id']}: {state}, {printable(row['name'])}; {said}; who has fetched it keeps what was fetched"


def remnant(one: dict[str, Any]) -> str:
    """Return what a depot has not ended, why, and what is possible by it until when."""
    said = _LEFT[one["what"]].format(why=one["why"], size=format_size(one["bytes"]), until=_when(one["until"]))
    return f"{one['depot']}: {said}; a mount asks again until then"


def _volumes(volume: str | None) -> list[VolumePaths]:
    if volume is not None:
        return [find_asked(volume)]
    found = {entry.source: VolumePaths(Path(entry.source)) for entry in mounts.ibpfs_mounts()}
    mine = [paths for paths in found.values() if _may_ask(paths)]
    if not mine:
        raise UsageError("no volume is mounted; say one with --volume")
    return mine


def _may_ask(paths: VolumePaths) -> bool:
    try:
        return paths.control.exists()
    except PermissionError:
        return False


def _ask_one(volume: str | None, secrets: Secrets, command: str, share_id: str, **arguments: Any) -> Any:
    """Of the volume that has the share."""
    troubles: list[Refused | VolumeError] = []
    for paths in _volumes(volume):
        try:
            return _ask_owner(volume, paths, secrets, command, id=share_id, **arguments)
        except (Refused, VolumeError) as error:
            troubles.append(error)
    # What the volume that has it says; the others do not know it.
    refused = [one for one in troubles if isinstance(one, Refused)] or troubles
    raise next((one for one in refused if not _UNKNOWN.search(str(one))), refused[0])


def _ask_owner(volume: str | None, paths: VolumePaths, secrets: Secrets, command: str, **arguments: Any) -> Any:
    """Of a volume that was not named only who has it mounted is asked: nobody becomes its owner for that."""
    if volume is None:
        return call(paths, command, **arguments)
    return ask(paths, command, secrets, **arguments)
