"""What all command lines have in common: --help, --version, secrets, volumes by name or mount point."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import ibpfs
from ibpfs.config import data_directory
from ibpfs.errors import UsageError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Function = Callable[..., Any]


def command(name: str, epilog: str | None = None) -> Callable[[Function], click.Command]:
    """A click command with -h, --help and --version."""

    def decorate(function: Function) -> click.Command:
        return click.command(name, context_settings=CONTEXT, epilog=epilog)(version_option(name)(function))

    return decorate


def version_option(name: str, *words: str) -> Callable[[Function], Function]:
    """--version, or other `words`. Not click's, for which the version must be known beforehand."""

    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            click.echo(f"{name} {ibpfs.__version__}")
            ctx.exit()

    return click.option(
        *(words or ("--version",)), is_flag=True, expose_value=False, is_eager=True, callback=show,
        help="Show the version and exit.",
    )  # fmt: skip


def read_passphrase_file(path: Path | str) -> bytes:
    """Return the first line of a file, '-' being standard input; its line end is no part of it."""
    try:
        data = sys.stdin.buffer.readline() if str(path) == "-" else Path(path).read_bytes().split(b"\n", 1)[0]
    except OSError as error:
        raise UsageError(f"{path}: cannot read the passphrase ({error.strerror})") from None
    passphrase = data.rstrip(b"\r\n")
    if not passphrase:
        raise UsageError(f"{path}: holds no passphrase (its first line is empty)")
    return passphrase


def has_terminal() -> bool:
    """Also where a link came on standard input."""
    try:
        Path("/dev/tty").open("rb").close()
    except OSError:
        return False
    return True


def complete_volume(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What the shell offers for a volume: names of volumes, and directories, on which they may be mounted."""
    names = {path.parent.name for path in data_directory().glob("*/volume.toml")}
    found = sorted(name for name in names if name.startswith(incomplete))
    if not found:
        return [CompletionItem(incomplete, type="dir")]
    here = sorted(path.name for path in Path().glob("*/") if path.name.startswith(incomplete) and path.is_dir())
    return [CompletionItem(one) for one in dict.fromkeys([*found, *here])]


def give_units(texts: dict[str, str], directory: Path | None) -> None:
    """Write systemd units, by name, into a directory; print them when there is none."""
    for name, text in texts.items():
        if directory is None:
            click.echo(f"# {name}\n{text}")
            continue
        try:
            (directory / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{directory / name}: {error.strerror}") from None


def escaped(path: str) -> str:
    """A name as a line of a list shows it: nothing in it moves a terminal, and nothing of it is hidden."""
    text = path.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def caller() -> tuple[int, int]:
    """Return user and group of the person, who may have come by sudo."""
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdigit():
        return int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID") or os.environ["SUDO_UID"])
    return os.getuid(), os.getgid()
