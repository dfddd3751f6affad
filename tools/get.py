"""ibpfs get: what a link points to."""

import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import trio

from ibpfs.config import format_size
from ibpfs.depot.address import Address
from ibpfs.errors import DataError, UsageError
from ibpfs.exnode_store.lors.work import Advance, Counter, Depots
from ibpfs.exnode_store.sharing.contents import Content
from ibpfs.exnode_store.sharing.fetching import stream
from ibpfs.exnode_store.sharing.links import Link
from ibpfs.exnode_store.sharing.receiving import Receiver, file_name
from ibpfs.exnode_store.sharing.staging import Staged
from ibpfs_tools.adopting import adopt_content
from ibpfs_tools.commands import command
from ibpfs_tools.exits import COMMAND, each
from ibpfs_tools.exnodes import Pace, note, pace_options, printable, run
from ibpfs_tools.shared import Senders, Unlocking, open_link, read_links, unlocking_options
from ibpfs_tools.stage import place_of, staged_on

#: Seconds that a copy made for this run alone is leased.
_NEAR_LEASE: Final = 6 * 3600


@command("get")
@click.argument("link", metavar="LINK|FILE|-")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PATH",
              help="Where it goes: a new name, or a directory that exists.  [default: the sender's name, here]")
@click.option("--force", is_flag=True, help="Also over a file that exists.")
@click.option("--restart", is_flag=True, help="Do not go on with an earlier run that broke.")
@click.option("--cat", is_flag=True, help="Write the file to standard output.")
@click.option("--info", is_flag=True, help="Only say what the link points to.")
@click.option("--near", metavar="DEPOT",
              help="Have the depots copy it to this one first, ibp[s]://HOST:PORT, and fetch it from there.")
@click.option("--adopt", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="In DIR on a mounted volume make a file of the shared slices, without copying them; the volume "
                   "makes copies of its own in the background.")
@unlocking_options
@pace_options
def get(
    link: str,
    output: Path | None,
    force: bool,
    restart: bool,
    cat: bool,
    info: bool,
    near: str | None,
    adopt: Path | None,
    unlocking: Unlocking,
    pace: Pace,
) -> None:
    """Fetch the file or directory that a link points to.

    FILE is a text with a link in it: a .ibpfs file or a mail message; '-' reads it from standard input. Of several
    links in it all are fetched. A LINK may be given itself, but is then seen by others on this machine.
    Needs no volume. Every byte is verified. What was fetched stays when it breaks, and the same command goes on there.
    """  # fmt: skip
    links = read_links(link)
    if len(links) > 1 and cat:
        raise UsageError(f"{len(links)} links in it: --cat writes one file")
    if len(links) > 1 and output is not None and not output.is_dir():
        raise UsageError(f"{len(links)} links in it: -o must be a directory")
    place = None if near is None else Address.parse(near)

    def work(one: Link) -> None:
        content = open_link(one, unlocking, pace)
        _tell(content, pace, info=info)
        if info:
            return
        if adopt is not None:
            _adopt(content, adopt / (output or file_name(content)), pace)
            return
        with _near(place, one, content, pace) as (nearer, hints):
            if cat:
                _cat(nearer, hints, pace)
            else:
                _fetch(nearer, output, hints, pace, force=force, restart=restart)

    numbers = range(len(links))
    each(numbers, lambda at: f"link {at + 1} of {len(links)}", lambda at: work(links[at]), COMMAND)


@contextmanager
def _near(
    place: Address | None, link: Link, content: Content, pace: Pace
) -> Iterator[tuple[Content, list[Address]]]:
    """The content with copies that are close, and where these are; those that are made here go again."""
    if place is None:
        staged = Staged.load(place_of(link))
        if staged is not None and staged.share == link.locator.id:
            yield staged.on(content), [staged.depot]
        else:
            yield content, []
        return
    made = staged_on(place, link, content, _NEAR_LEASE, pace)
    try:
        yield made.on(content), [place]
    finally:
        run(lambda depots, _: depots.release(made.manages()), "", pace, pins=made.on(content).pins)


def _adopt(content: Content, target: Path, pace: Pace) -> None:
    adopt_content(content, target, pace)
    note(f"{printable(str(target))}: {format_size(content.size)}, nothing copied yet", pace)


def _fetch(
    content: Content, output: Path | None, hints: list[Address], pace: Pace, *, force: bool, restart: bool
) -> None:
    target = _target(content, output)

    async def work(depots: Depots, advance: Advance) -> tuple[int, list[str]]:
        receiver = Receiver(depots, content, advance, pace.streams)
        return await receiver.receive(target, overwrite=force, resume=not restart), receiver.left_out

    resumed, left_out = run(work, f"fetching {printable(target.name)}", pace, hints, content.pins)
    earlier = f", {format_size(resumed)} of it earlier" if resumed else ""
    note(f"{printable(str(target))}: {format_size(content.size)}{earlier}, verified", pace)
    if left_out:
        note(f"{len(left_out)} symbolic links left out, which this file system cannot hold, such as"
             f" {printable(left_out[0])}", pace)  # fmt: skip


def _target(content: Content, output: Path | None) -> Path:
    if output is None:
        return Path(file_name(content))
    return output / file_name(content) if output.is_dir() else output


def _cat(content: Content, hints: list[Address], pace: Pace) -> None:
    if content.is_directory:
        raise UsageError("the link is to a directory: --cat writes a file")
    entry, digest, out = content.entries[0], hashlib.sha256(), sys.stdout.buffer

    async def work(depots: Depots, advance: Advance) -> None:
        counter = Counter(entry.size, advance)

        async def write(data: bytes) -> None:
            await trio.to_thread.run_sync(out.write, data)
            digest.update(data)
            counter.add(len(data))

        await stream(depots, content, entry, write, pace.streams)

    run(work, f"fetching {printable(content.name)}", pace, hints, content.pins)
    out.flush()
    if entry.sha256 is not None and digest.digest() != entry.sha256:
        raise DataError("what was fetched is not what was shared: its SHA-256 differs")


def _tell(content: Content, pace: Pace, *, info: bool) -> None:
    what = f"{content.files} files, " if content.is_directory else ""
    what += f"{content.links} symbolic links, " if content.links else ""
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(content.expires))
    sender = Senders().meet(content.sender.key, time.strftime("%Y-%m-%d"))
    lines = [f"{printable(content.name)}: {what}{format_size(content.size)}, until {until}, from {sender}"]
    lines += [f"  {printable(line)}" for line in content.note.splitlines()[:20]]
    for line in lines:
        if info:
            click.echo(line)
        else:
            note(line, pace)
