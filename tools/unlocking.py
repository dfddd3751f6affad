"""Where the secret that opens a volume comes from: a file, standard input or a prompt; never argv."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ibpfs.config import Secret, VolumePaths, load_config, read_key_file
from ibpfs.errors import UsageError, VolumeError
from ibpfs_tools.commands import read_passphrase_file


@dataclass(frozen=True)
class Secrets:
    """Where the person said that the secret is."""

    passphrase_file: str | Path | None = None
    recovery_file: str | None = None


def secret_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --passphrase-file and --recovery-file; the function gets them as `secrets`."""

    @functools.wraps(function)
    def with_secrets(*, passphrase_file: str | None, recovery_file: str | None, **others: Any) -> Any:
        return function(secrets=Secrets(passphrase_file, recovery_file), **others)

    decorated: Callable[..., Any] = with_secrets
    for add in (
        click.option(
            "--recovery-file",
            metavar="FILE",
            help="Open the volume with the recovery string in FILE ('-': standard input).",
        ),
        click.option(
            "--passphrase-file",
            metavar="FILE",
            help="Open the volume with the passphrase in the first line of FILE ('-': standard input).",
        ),
    ):
        decorated = add(decorated)
    return decorated


def find_secret(paths: VolumePaths, secrets: Secrets) -> Secret:
    """Return what opens the volume: the file that was named, else the key file, else what a person types."""
    if secrets.recovery_file:
        from ibpfs.exnode_store.checkpoints.recovery_string import parse_recovery  # slow to import, and seldom used

        text = read_passphrase_file(secrets.recovery_file).decode("utf-8", "replace")
        return Secret("recovery", parse_recovery(text).secret)
    if secrets.passphrase_file:
        return Secret("passphrase", read_passphrase_file(secrets.passphrase_file))
    kinds = {slot.get("kind") for slot in load_config(paths).slots}
    if "keyfile" in kinds and (paths.key.exists() or "passphrase" not in kinds):
        return _key_file(paths)
    return _ask(paths)


def _key_file(paths: VolumePaths) -> Secret:
    try:
        return read_key_file(paths.key)
    except FileNotFoundError:
        raise VolumeError(f"{paths.key}: missing; open the volume with --recovery-file FILE") from None


def _ask(paths: VolumePaths) -> Secret:
    if not sys.stdin.isatty():
        raise UsageError(f"{paths.root}: needs its passphrase; give it with --passphrase-file FILE")
    answer: str = click.prompt(f"Passphrase of {paths.root}", hide_input=True, err=True)
    return Secret("passphrase", answer.encode())
