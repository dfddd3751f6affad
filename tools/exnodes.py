"""What the verbs on exNode documents have in common: reading and saving them, depots, streams, deadlines."""

import functools
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from ibpfs.config import parse_duration
from ibpfs.depot.address import Address
from ibpfs.errors import DataError, UsageError
from ibpfs.exnode_store.documents.exnode import MAX_DOCUMENT, BadDocument, ExNode
from ibpfs.exnode_store.documents.notation import Notation, notation_of, read, recognise, write
from ibpfs.exnode_store.lors.depot_lists import ListedDepot, order, parse_labels, parse_list
from ibpfs.exnode_store.lors.outputs import editing, write_document
from ibpfs.exnode_store.lors.work import Advance, Depots, connected, within
from ibpfs.exnode_store.sharing.fetching import STRANGER
from ibpfs_tools.progress import progress_bar

T = TypeVar("T")

CLEAR = """Bytes are stored as they are: whoever runs a depot, or listens on the way there, can read them. What needs
to stay private belongs on a volume (mkfs.ibpfs), whose bytes are sealed."""


# --- documents


def read_bytes(path: Path) -> bytes:
    """Return a document, '-' being standard input."""
    with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise BadDocument(f"{path}: too large for an exNode")
    return data


def load(path: Path) -> tuple[ExNode, Notation]:
    data = read_bytes(path)
    with naming(path):
        return read(data), recognise(data)


class naming:
    """Errors about a document name its file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for kind in (BadDocument, UsageError, DataError):
            if isinstance(error, kind):
                raise kind(f"{self._path}: {error}") from None


def save(path: Path, exnode: ExNode, notation: Notation, *, overwrite: bool) -> None:
    with naming(path):
        data = write(exnode, notation)
    write_document(path, data, overwrite=overwrite)


def change(path: Path, output: Path | None, force: bool, work: Callable[[ExNode], ExNode]) -> None:
    """Replace a document by what `work` makes of it, or write that to `output`."""
    with editing(path):
        exnode, notation = load(path)
        changed = work(exnode)
        if output is None:
            with naming(path):
                write_document(path, write(changed, notation), overwrite=True)
        else:
            save(output, changed, notation_of(output) or notation, overwrite=force)


def printable(text: str) -> str:
    """A stranger's text, harmless on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


# --- options


def _options(*added: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda inner, add: add(inner), reversed(added), function)

    return decorate


document_argument = click.argument("document", metavar="EXNODE", type=click.Path(path_type=Path, allow_dash=True))

change_options = _options(
    click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
                 help="Write the exNode there.  [default: over the old one]"),
    click.option("--force", is_flag=True, help="Also over a file that exists."),
)  # fmt: skip

_depot = click.option("--depot", "depots", multiple=True, metavar="ibp://HOST:PORT",
                      help="A depot; may be given several times. The first are preferred.")  # fmt: skip
_depots_file = click.option("--depots-file", type=click.Path(path_type=Path), metavar="FILE",
                            help="A list of depots: lines 'ibp://HOST:PORT NAME=VALUE...' or 'DEPOT HOST PORT', or "
                                 "the depots.json of libdlt.")  # fmt: skip
_near = click.option("--near", multiple=True, metavar="NAME=VALUE",
                     help="Prefer depots of which the list says so; may be given several times.")  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Depots that a person named, the preferred ones first."""

    addresses: list[Address]


def depot_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --depot, --depots-file and --near; the function gets them as `places`."""

    @functools.wraps(function)
    def with_places(*, depots: tuple[str, ...], depots_file: Path | None, near: tuple[str, ...], **others: Any) -> Any:
        return function(places=find_places(depots, depots_file, near), **others)

    return _options(_depot, _depots_file, _near)(with_places)  # type: ignore[no-any-return]


def find_places(depots: tuple[str, ...], depots_file: Path | None, near: tuple[str, ...]) -> Places:
    listed = [ListedDepot(Address.parse(word)) for word in depots]
    if depots_file is not None:
        try:
            listed += parse_list(depots_file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, UsageError) as error:
            raise UsageError(f"{depots_file}: {error}") from None
    return Places(list(dict.fromkeys(order(listed, parse_labels(near)))))


@dataclass(frozen=True)
class Pace:
    """How fast, how long at most, and whether anybody looks."""

    streams: int
    deadline: float | None
    quiet: bool


def pace_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --streams, --deadline and --quiet; the function gets them as `pace`."""

    @functools.wraps(function)
    def with_pace(*, streams: int, deadline: str | None, quiet: bool, **others: Any) -> Any:
        limit = None if deadline is None else parse_duration(deadline)
        return function(pace=Pace(streams, limit, quiet), **others)

    return _options(  # type: ignore[no-any-return]
        click.option("--streams", type=click.IntRange(1, 256), default=8, show_default=True, metavar="N",
                     help="How many transfers at a time."),
        click.option("--deadline", metavar="DURATION", help="Give up when it takes longer."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no notes."),
    )(with_pace)  # fmt: skip


def run(
    work: Callable[[Depots, Advance], Awaitable[T]], title: str, pace: Pace, hints: list[Address] | None = None,
    pins: Mapping[Address, bytes] | None = None,
) -> T:
    """Run `work` with clients and a progress bar. `pins`: certificates by which depots are known."""
    strangers: dict[Address, None] = {}

    async def main(advance: Advance) -> T:
        async with connected(hints or (), pace.streams, pins or {}) as depots:
            try:
                return await within(pace.deadline, work(depots, advance), title)
            finally:
                strangers.update(depots.strangers)

    with progress_bar(title, pace.quiet) as advance:
        found = trio.run(main, advance)
    for one in strangers:  # without these it was done all the same
        note(f"{one}: not used: {STRANGER}", pace)
    return found


def note(text: str, pace: Pace) -> None:
    if not pace.quiet:
        click.echo(text, err=True)
