"""The configuration file of `ibpfs-depot`: TOML, with the names of the options."""

import tomllib
from pathlib import Path
from typing import Any

import click

from ibpfs.errors import UsageError

NOT_IN_FILE = frozenset({"config", "help", "version"})


def keys(command: click.Command) -> dict[str, click.Option]:
    """The settings that a file may hold."""
    options = [one for one in command.params if isinstance(one, click.Option) and one.name not in NOT_IN_FILE]
    return {str(one.name).replace("_", "-") if one.name != "resources" else "resource": one for one in options}


def use(context: click.Context, _: click.Parameter, file: Path | None) -> Path | None:
    """For the option that names the file: it gives defaults to all others."""
    if file is not None:
        context.default_map = read(file, context)
    return file


def read(file: Path, context: click.Context) -> dict[str, Any]:
    """Raises UsageError with the file and the key."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: no TOML: {error}") from None
    known = keys(context.command)
    values = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{file}: {key}: there is no such setting")
        values[str(known[key].name)] = _converted(file, key, known[key], value, context)
    return values


def _converted(file: Path, key: str, option: click.Option, value: Any, context: click.Context) -> Any:
    if option.multiple and not isinstance(value, list):
        value = [value]
    if not _is_kind(option, value):
        raise UsageError(f"{file}: {key}: {value!r} is not what belongs there")
    try:
        option.type_cast_value(context, value)
    except click.BadParameter as error:
        raise UsageError(f"{file}: {key}: {error.message}") from None
    return value


def _is_kind(option: click.Option, value: Any) -> bool:
    """Before click, which would take true for 1."""
    if option.is_flag:
        return isinstance(value, bool)
    if option.multiple:
        return all(isinstance(one, str) for one in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)
