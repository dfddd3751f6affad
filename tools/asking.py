"""Asking the owner of a volume: whoever has it mounted, or this process when nobody has."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ibpfs.config import NoVolume, VolumePaths, check_access, find_volume
from ibpfs.control import NotInUse, call
from ibpfs_tools import mounts
from ibpfs_tools.exits import COMMAND, ExitWith
from ibpfs_tools.progress import Advance, progress_bar
from ibpfs_tools.unlocking import Secrets, find_secret


def find_asked(word: str) -> VolumePaths:
    """Return the volume that `word` means: a mount point, anything inside a mount, or as find_volume has it."""
    place = mounts.absolute(word)
    entry = mounts.mount_on(place) or mounts.mount_of(place)
    if entry is None and ("/" in word or place.exists()):
        entry = mounts.mount_holding(place)
    if entry is not None:
        return VolumePaths(Path(entry.source))
    try:
        return find_volume(word)
    except NoVolume:
        if not place.is_dir():
            raise
        none = "nor is it one" if "/" in word else "nor is there one of that name"
        raise NoVolume(f"{word}: no volume is mounted there, {none}") from None


def ask(
    paths: VolumePaths, command: str, secrets: Secrets, *, title: str = "", quiet: bool = False, **arguments: Any
) -> Any:
    """Return what the owner answers, with a progress bar on a terminal; be the owner when there is none."""

    def alone(advance: Advance) -> Any:
        check_access(paths)
        secret = find_secret(paths, secrets)
        import trio  # slow to import, as what follows, and needed here only

        from ibpfs.mount import run_command
        from ibpfs_tools.logs import start_logging

        start_logging(paths)

        return trio.run(run_command, paths, secret, command, arguments, advance)

    return _ask(paths, command, alone, title, quiet, arguments)


def ask_without_keys(
    paths: VolumePaths, command: str, *, title: str = "", quiet: bool = False, **arguments: Any
) -> Any:
    """The same for a command of the upkeep, which needs no secret."""

    def alone(advance: Advance) -> Any:
        check_access(paths)
        import trio

        from ibpfs.keyless import run_upkeep
        from ibpfs_tools.logs import start_logging

        start_logging(paths)

        return trio.run(run_upkeep, paths, command, arguments, advance)

    return _ask(paths, command, alone, title, quiet, arguments)


def _ask(
    paths: VolumePaths, command: str, alone: Callable[[Advance], Any], title: str, quiet: bool,
    arguments: dict[str, Any],
) -> Any:  # fmt: skip
    with progress_bar(title, quiet) as advance:
        try:
            return call(paths, command, on_progress=advance, **arguments)
        except NotInUse:
            return alone(advance)


def tell(volume: str, result: Any, said: str, wrong: str, *, as_json: bool, quiet: bool) -> None:
    """What a command answered: as JSON, or `said`. ExitWith when something stays `wrong`."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        click.echo(f"{volume}: {said}")
    if wrong:
        raise ExitWith(f"{volume}: {wrong}; see ibpfs depots, and the log", COMMAND.failure)
