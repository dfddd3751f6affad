"""What the verbs on links have in common: reading a link without its being on a command line, opening its record."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from ibpfs.config import data_directory, write_private
from ibpfs.errors import UsageError
from ibpfs.exnode_store.sharing.contents import Content
from ibpfs.exnode_store.sharing.links import BadLink, Link
from ibpfs.exnode_store.sharing.reading import open_record, read_record
from ibpfs.exnode_store.sharing.record_log import LogEntry
from ibpfs.exnode_store.sharing.share_keys import unwrap_secret
from ibpfs.mail.links import links_in
from ibpfs_tools.commands import has_terminal, read_passphrase_file
from ibpfs_tools.exnodes import Pace, run

#: A message or a .ibpfs file; what is longer has its links before that.
_MOST_TEXT: Final = 64 * 1024 * 1024
_MOST_KEY: Final = 64 * 1024
_IDENTITIES: Final = ("~/.config/age/keys.txt", "~/.ssh/id_ed25519", "~/.ssh/id_rsa")


@dataclass(frozen=True)
class Unlocking:
    """Where the receiver's keys and passphrase are."""

    passphrase_file: str | None
    identity_files: tuple[Path, ...] = ()
    passphrases: dict[str, str] = field(default_factory=dict, repr=False)

    def open(self, entry: LogEntry, link: Link) -> Content:
        return open_record(entry, link, self._unwrap, self._passphrase)

    def _unwrap(self, wrapped: bytes) -> bytes:
        found: dict[Path, bytes] = {}
        for path in self.identity_files or [Path(one).expanduser() for one in _IDENTITIES]:
            try:
                with path.open("rb") as file:
                    found[path] = file.read(_MOST_KEY)
            except OSError as error:
                if self.identity_files:
                    raise UsageError(f"{path}: {error.strerror}") from None
        paths = list(found)
        return unwrap_secret(wrapped, list(found.values()), lambda number: _key_passphrase(paths[number]))

    def _passphrase(self) -> str:
        """Asked for once in a run."""
        if "" not in self.passphrases:
            self.passphrases[""] = self._read()
        return self.passphrases[""]

    def _read(self) -> str:
        if self.passphrase_file is not None:
            return text_of(read_passphrase_file(self.passphrase_file))
        if not has_terminal():
            raise UsageError("the link has a passphrase: give it with --passphrase-file FILE")
        found: str = click.prompt("Passphrase of the link", hide_input=True, err=True)
        return found


def _key_passphrase(path: Path) -> str:
    if not has_terminal():
        raise UsageError(f"{path}: has a passphrase, and there is no terminal to ask for it; give a copy without one"
                         " (ssh-keygen -p -f COPY)")  # fmt: skip
    found: str = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
    return found


def unlocking_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --passphrase-file and --identity; the function gets them as `unlocking`."""

    @functools.wraps(function)
    def with_unlocking(*, passphrase_file: str | None, identity: tuple[Path, ...], **others: Any) -> Any:
        return function(unlocking=Unlocking(passphrase_file, identity), **others)

    decorated: Callable[..., Any] = with_unlocking
    for add in (
        click.option("-i", "--identity", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
                     help="A file with an age or ssh key, for links to certain recipients.  [default: the usual "
                          "places]"),
        click.option("--passphrase-file", metavar="FILE",
                     help="The link's passphrase is the first line of FILE ('-': standard input).  [default: asked "
                          "for]"),
    ):  # fmt: skip
        decorated = add(decorated)
    return decorated


def open_link(link: Link, unlocking: Unlocking, pace: Pace) -> Content:
    entry = run(lambda depots, _: read_record(depots, link.locator), "", pace)
    return unlocking.open(entry, link)


def text_of(passphrase: bytes) -> str:
    try:
        return passphrase.decode()
    except UnicodeDecodeError:
        raise UsageError("a link's passphrase is UTF-8 text") from None


def read_links(word: str) -> list[Link]:
    """The links that `word` is, or that the file of this name, '-' being standard input, holds. UsageError."""
    if word.startswith(("ibpfs:", "http://", "https://", "<")):
        click.echo("ibpfs: others on this machine could read the link in the command line;"
                   " ibpfs get - reads it from standard input, ibpfs get FILE from a file", err=True)  # fmt: skip
        return [Link.parse(word)]
    data = _read_text(word)
    found = links_in(data)
    if not found:
        if not data.strip():
            raise BadLink(f"{'standard input' if word == '-' else word}: is empty, there is no link in it")
        Link.parse(data[:100_000].decode("utf-8", "replace"))  # says what is wrong with it, if it is part of a link
        raise BadLink(f"{word}: there is no link in it")
    links: list[Link] = []
    trouble: BadLink | None = None
    for text in found:
        try:
            links.append(Link.parse(text))
        except BadLink as error:
            trouble = error
    if trouble is not None and not links:
        raise trouble
    if trouble is not None:
        click.echo(f"ibpfs: one of {len(found)} links in it is of no use: {trouble}", err=True)
    return list({link.locator.id: link for link in links}.values())


def _read_text(word: str) -> bytes:
    try:
        if word == "-":
            return sys.stdin.buffer.read(_MOST_TEXT)
        with Path(word).open("rb") as file:
            return file.read(_MOST_TEXT)
    except FileNotFoundError:
        raise UsageError(f"{word[:60]}: neither a link nor a file; links begin with ibpfs: or https://") from None
    except OSError as error:
        raise UsageError(f"{word}: {error.strerror}") from None


class Senders:
    """Whose links this person has opened before: a file, known by the senders' keys."""

    def __init__(self) -> None:
        self._path = data_directory() / "senders.json"

    def meet(self, key: bytes, now: str) -> str:
        """Say whether the sender is known, and remember them."""
        known = self._load()
        name = key.hex()
        shown = name[:16]
        if name in known:
            return f"sender {shown}, the same as on {known[name]}"
        known[name] = now
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps(known, indent=1).encode())
        except OSError:
            return f"sender {shown}"
        return f"sender {shown}, not met before"

    def _load(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
