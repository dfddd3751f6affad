"""fsck.ibpfs: check a volume, and mend it; also what fsck(8) calls as /sbin/fsck.ibpfs."""

import logging
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
import trio

from ibpfs.config import Secret, VolumeConfig, VolumePaths, check_access, find_volume, load_config, parse_config
from ibpfs.depot.embedded import EmbeddedDepot, socket_of
from ibpfs.errors import UsageError, VolumeError
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.fsck import checked_store, finish
from ibpfs.exnode_store.fsck_data import check_data
from ibpfs.exnode_store.fsck_faults import Checkup, Consent, Fault, Outcome, always, if_safe, never
from ibpfs.exnode_store.keys import VolumeKeys, open_slots
from ibpfs.ownership import owned
from ibpfs.process import prepare_process
from ibpfs_tools import exits
from ibpfs_tools.commands import command, complete_volume, version_option
from ibpfs_tools.unlocking import Secrets, find_secret, secret_options

#: fsck(8); they add up
CLEAN, MENDED, LEFT, UNVERIFIED = 0, 1, 4, 8
#: Seconds that the volume's own depot gets to start.
_DEPOT_START = 10.0

EPILOG = """\b
Exit codes are those of fsck(8), added up: 0 nothing wrong, 1 something was wrong and is mended,
4 something is left as it was, 8 the check could not be done or a depot did not answer, 16 wrong call,
32 interrupted.
"""


@command("fsck.ibpfs", epilog=EPILOG)
@click.argument("volume", shell_complete=complete_volume)
@click.option("--data", is_flag=True, help="Load and verify every replica from the depots, too.")
@click.option(
    "-a", "-p", "automatic", is_flag=True, help="Mend what can be mended without a guess, and ask nothing.  "
    "[default where there is no terminal]",
)  # fmt: skip
@click.option("-y", "yes", is_flag=True, help="Mend everything that can be mended.")
@click.option("-n", "nothing", is_flag=True, help="Change nothing, only say what is wrong.")
@click.option("-r", "ask", is_flag=True, help="Ask before each repair.  [default on a terminal]")
@click.option("-C", "progress", is_flag=True, help="Show progress; fsck(8) may add a descriptor (-C0).")
@click.option("-f", "force", is_flag=True, help="Accepted: a check is always complete.")
@click.option("-T", "no_title", is_flag=True, help="Accepted: there is no title.")
@click.option("-v", "--verbose", is_flag=True, help="Log what the depots do.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing when nothing is wrong.")
@version_option("fsck.ibpfs", "-V")
@secret_options
def fsck(
    volume: str,
    data: bool,
    automatic: bool,
    yes: bool,
    nothing: bool,
    ask: bool,
    progress: bool,
    force: bool,
    no_title: bool,
    verbose: bool,
    quiet: bool,
    secrets: Secrets,
) -> int:
    """Check VOLUME, which must not be mounted: the exNode store's invariants and, with --data, every stored byte.

    Each fault is one line that names the object and says what was done. Damaged replicas are copied anew from sound
    ones; files of which bytes are lost are named.
    """
    del force, no_title
    if automatic + yes + nothing + ask > 1:
        raise UsageError("only one of -a (or -p), -y, -n and -r may be given")
    paths = find_volume(volume)
    check_access(paths)
    _prepare_logging(verbose)
    screen = Screen(shown=progress or sys.stderr.isatty())
    consent = _consent(automatic=automatic, yes=yes, ask=ask, screen=screen)
    checkup = Checkup(paths, never if nothing else consent, screen.tell, read_only=nothing, progress=screen.progress)
    prepare_process()
    files = trio.run(_run, checkup, secrets, data)
    screen.clear()
    if not quiet or checkup.outcome != Outcome():
        click.echo(f"{paths.root}: {_summary(checkup.outcome, files)}")
    return _exit_code(checkup.outcome)


class Screen:
    """Findings on standard output; on standard error one line of progress, which makes way for them."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._line = ""

    def tell(self, text: str) -> None:
        self.clear()
        click.echo(text)

    def progress(self, done: int, total: int, text: str) -> None:
        line = f"{text}: {100 * done // max(total, 1)} %"
        if self._shown and line != self._line:
            self.clear()
            click.echo(line, nl=False, err=True)
            self._line = line

    def clear(self) -> None:
        if self._line:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._line = ""


def _consent(*, automatic: bool, yes: bool, ask: bool, screen: Screen) -> Consent:
    if yes:
        return always
    if not ask and (automatic or not sys.stdin.isatty()):
        return if_safe

    def question(fault: Fault) -> bool:
        screen.clear()
        return click.confirm(f"{fault.what}.\n  Repair it ({fault.cure})?", default=fault.safe)

    return question


async def _run(checkup: Checkup, secrets: Secrets, data: bool) -> int:
    """Return the number of files."""
    async with owned(checkup.paths):
        with checked_store(checkup) as db:
            if db is None:
                return 0
            if data:
                await _check_data(checkup, db, secrets)
            finish(checkup)
            return db.files


async def _check_data(checkup: Checkup, db: Database, secrets: Secrets) -> None:
    keys = _keys(checkup, db, secrets)
    async with _embedded(checkup.paths, db):
        await check_data(checkup, str(socket_of(checkup.paths.depot)), keys)


@asynccontextmanager
async def _embedded(paths: VolumePaths, db: Database) -> AsyncIterator[None]:
    """The volume's own depot, where it has one, runs."""
    if not db.value("SELECT 1 FROM depots WHERE embedded AND role != 'removed'"):
        yield
        return
    depot = EmbeddedDepot(paths.depot, paths.log / "depot.log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(depot.keep, _ignore_address)
        with trio.move_on_after(_DEPOT_START):
            await depot.ready.wait()
        yield
        nursery.cancel_scope.cancel()


def _ignore_address(_: str) -> None:
    """Its port is the next mount's affair; here its socket is used."""


def _keys(checkup: Checkup, db: Database, secrets: Secrets) -> VolumeKeys | None:
    """The keys, where they can be had without a question; digests are verified without them."""
    given = bool(secrets.passphrase_file or secrets.recovery_file)
    try:
        if not given and not checkup.paths.key.exists():
            raise VolumeError("no key is at hand; see --passphrase-file")
        config = _config(checkup.paths, db)
        secret: Secret = find_secret(checkup.paths, secrets)
        return open_slots(config.slots, config.epochs, secret.kind, secret.value, config.uuid)
    except VolumeError as error:
        if given:
            raise
        checkup.note(f"digests are verified, frames are not opened: {error}")
        return None


def _config(paths: VolumePaths, db: Database) -> VolumeConfig:
    try:
        return load_config(paths)
    except VolumeError:
        return parse_config(db.facts.get("volume_toml", ""), paths.properties)


def _summary(outcome: Outcome, files: int) -> str:
    words = []
    if outcome.corrected:
        words.append(f"{outcome.corrected} repaired")
    if outcome.left:
        words.append(f"{outcome.left} left as {'it was' if outcome.left == 1 else 'they were'}")
    if outcome.unverified:
        words.append(f"{outcome.unverified} {'depot' if outcome.unverified == 1 else 'depots'} not verified")
    return ", ".join(words) if words else f"clean, {files} {'file' if files == 1 else 'files'}"


def _exit_code(outcome: Outcome) -> int:
    code = CLEAN
    for happened, value in ((outcome.corrected, MENDED), (outcome.left, LEFT), (outcome.unverified, UNVERIFIED)):
        code |= value if happened else 0
    return code


def _prepare_logging(verbose: bool) -> None:
    """What the rooms log is said in findings; but who waits should know for whom."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("fsck.ibpfs: %(message)s"))
    logging.getLogger().addHandler(terminal if verbose else logging.NullHandler())
    if verbose:
        logging.getLogger().setLevel(logging.INFO)
    else:
        owner = logging.getLogger("ibpfs.ownership")
        owner.setLevel(logging.INFO)
        owner.addHandler(terminal)


def main() -> None:
    # click knows no option with a value glued to it that may also be absent
    words = ["-C" if re.fullmatch(r"-C-?\d+", word) else word for word in sys.argv[1:]]
    exits.run(fsck, exits.FSCK, words)
