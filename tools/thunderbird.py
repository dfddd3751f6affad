"""ibpfs thunderbird: the add-on that sends large attachments as links, and what it needs on this machine."""

import json
import sys
import zipfile
from pathlib import Path

import click

from ibpfs.errors import UsageError
from ibpfs_tools.commands import CONTEXT, command

NAME = "org.ibpfs.filelink"
ADD_ON = "filelink@ibpfs.org"
SOURCES = Path(__file__).with_name("thunderbird")
#: In the add-on; in this order, with one date, so that the same sources give the same file.
FILES = ("manifest.json", "background.js", "host.js", "icon.svg", "management.css", "management.html", "management.js")
_DATE = (2026, 1, 1, 0, 0, 0)


@click.group("thunderbird", context_settings=CONTEXT)
def thunderbird() -> None:
    """Large attachments as links in Thunderbird: an add-on (FileLink provider), and its connection to ibpfs."""


@thunderbird.command()
@click.option("--directory", type=click.Path(path_type=Path), metavar="DIRECTORY",
              help="Where Thunderbird looks for programs.  [default: ~/.mozilla/native-messaging-hosts]")
def install(directory: Path | None) -> None:
    """Tell Thunderbird where ibpfs is. Then install the add-on: `ibpfs thunderbird xpi`."""
    program = Path(sys.argv[0]).absolute().with_name("ibpfs-thunderbird-host")
    if not program.exists():
        program = Path(sys.executable).with_name("ibpfs-thunderbird-host")
    if not program.exists():
        raise UsageError(f"{program}: is not installed")
    place = directory or Path.home() / ".mozilla" / "native-messaging-hosts"
    place.mkdir(parents=True, exist_ok=True)
    target = place / f"{NAME}.json"
    target.write_text(json.dumps(native_manifest(program), indent=2) + "\n", encoding="utf-8")
    click.echo(f"{target}: written")


def native_manifest(program: Path) -> dict[str, object]:
    """Return what Thunderbird wants to know of a program that an add-on may start."""
    return {
        "name": NAME, "description": "ibpfs: files as links", "path": str(program), "type": "stdio",
        "allowed_extensions": [ADD_ON],
    }  # fmt: skip


@command("xpi")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("ibpfs-filelink.xpi"),
              show_default=True, metavar="FILE", help="Where it goes.")
def xpi(output: Path) -> None:
    """Write the add-on, to be installed in Thunderbird: Add-ons and Themes, cog wheel, Install Add-on From File."""
    try:
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in FILES:
                archive.writestr(zipfile.ZipInfo(name, _DATE), (SOURCES / name).read_bytes())
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}") from None
    click.echo(f"{output}: written")


thunderbird.add_command(xpi)
