"""Whether what the depots have is newer than this store: a restored backup, a copied volume directory."""

from collections.abc import Sequence
from functools import partial

from ibpfs.depot.address import Address
from ibpfs.depot.client import DepotClient
from ibpfs.errors import IbpfsError
from ibpfs.exnode_store.checkpoints.commits import Commit, Place, digest_of, is_behind
from ibpfs.exnode_store.checkpoints.generation import Generation
from ibpfs.exnode_store.checkpoints.log_rows import CHECKPOINT, LogRows
from ibpfs.exnode_store.checkpoints.logs import Logs
from ibpfs.exnode_store.checkpoints.reading import LogCopy, LogReader, read_head
from ibpfs.exnode_store.checkpoints.record_log import LogSeal
from ibpfs.exnode_store.ledger_rows import unpack_key


async def newer_commits(rows: LogRows, logs: Logs, key: bytes, log: bytes, places: Sequence[Place],
                        generation: Generation | None) -> str:  # fmt: skip
    """What a person reads: "2 commits"; "" when the depots have nothing that this store does not know."""
    if rows.is_past(log, given_up=True):
        return ""
    seal = LogSeal(key, log)
    ours = [copy for copy in logs.answering(rows.copies(CHECKPOINT)) if copy.log == log]
    if ours:
        known = generation if generation is not None and generation.log == log else None
        readers = [LogCopy(str(copy.depot), partial(logs.load, copy)) for copy in ours]
        if known is not None and known.length:
            return _judge(rows, (await LogReader(readers, seal).read(known.length, previous=known.previous)).commits)
        return await _all_of(rows, readers, seal)
    if any(copy.log == log for copy in rows.copies(CHECKPOINT)):
        return ""  # its depots are silent now
    told = await _foreign(rows, seal, places)
    if told is None:
        return "" if rows.is_past(log) else "commits that this store does not know"
    return told


async def _all_of(rows: LogRows, readers: Sequence[LogCopy], seal: LogSeal) -> str:
    _, _, start = await read_head(readers[0])
    return _judge(rows, (await LogReader(readers, seal).read(start)).commits)


async def _foreign(rows: LogRows, seal: LogSeal, places: Sequence[Place]) -> str | None:
    """Of a log that this store has no row of; None when nobody gives it, or nothing whole is in it."""
    for place in places:
        if place.embedded:
            continue
        async with DepotClient(Address.parse(place.address), fingerprint=bytes.fromhex(place.pin) or None) as client:

            async def load(offset: int, length: int, client: DepotClient = client, place: Place = place) -> bytes:
                return bytes(await client.load(unpack_key(place.read_key), offset, length))

            try:
                copies = [LogCopy(place.address, load)]
                _, _, start = await read_head(copies[0])
                commits = (await LogReader(copies, seal).read(start)).commits
            except IbpfsError:
                continue
        if commits:
            return _judge(rows, commits)
    return None


def _judge(rows: LogRows, commits: Sequence[tuple[Commit, bytes]]) -> str:
    if not commits or rows.knows(digest_of(commits[-1][1])):
        return ""
    theirs = commits[-1][0]
    last = rows.last_commit()
    ours = last[1] if last else {}
    count = theirs.number - sum(ours.values())
    if not is_behind(ours, theirs.versions) or count < 1:
        return "a line of commits of another owner"
    return f"{count} commit{'s' if count > 1 else ''}"
