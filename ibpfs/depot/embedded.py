"""The keeper of a volume's embedded depot: starts its process, starts it again when it dies.

The process outlives the keeper: it ends by itself when nobody is connected. It inherits no descriptor.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

import trio

from ibpfs.ownership import is_held

_log = logging.getLogger(__name__)

#: Seconds without a connection after which the process ends.
UNUSED_LIMIT: Final = 5
_STORE_LOCKED: Final = 3  # its exit code when another depot has the store
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_LOOK_EVERY: Final = 0.5
_LOG_LIMIT: Final = 5 * 1000 * 1000


class EmbeddedDepot:
    """The depot whose store is the directory `store`; its process logs to `log`."""

    #: Processes that outlive their keeper: a Popen object must not be collected before its process has ended.
    _left: ClassVar[list[trio.Process]] = []

    def __init__(self, store: Path, log: Path) -> None:
        self._store = store
        self._log_path = log
        self.process: trio.Process | None = None
        self.ready = trio.Event()
        self.address = ""

    @property
    def socket(self) -> Path:
        """Where it listens for this machine alone."""
        return socket_of(self._store)

    async def keep(self, told: Callable[[str], None]) -> None:
        """See to it that the depot runs, until cancelled. `told` gets its TCP address at every start."""
        pause = _FIRST_PAUSE
        while True:
            began = trio.current_time()
            if is_held(self._store / "lock"):  # an earlier owner's
                self._tell_address(told)
                await trio.sleep(_LOOK_EVERY)
                continue
            try:
                code = await self._run(told)
            except OSError as error:
                _log.warning("the embedded depot cannot be started: %s", error)
                code = 0
            if trio.current_time() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            if code not in (0, _STORE_LOCKED):
                _log.warning("the embedded depot %s; it is started again (its log: %s)", _how(code), self._log_path)
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run(self, told: Callable[[str], None]) -> int:
        with self._log_file() as log:
            process = await trio.lowlevel.open_process(
                self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        self.process = process
        self._left[:] = [one for one in self._left if one.poll() is None] + [process]
        assert process.stdout is not None
        async with process.stdout:
            said = b""
            while not said.endswith(b"\n"):
                chunk = await process.stdout.receive_some(4096)
                if not chunk:
                    break
                said += chunk
        if b"ready" in said:
            self._tell_address(told)
        return await process.wait()

    def _command(self) -> list[str]:
        # -P: the working directory has no say in what is imported.
        return [
            sys.executable, "-P", "-m", "ibpfs_tools.depot", "--store", str(self._store), "--unix", str(self.socket),
            "--listen", "127.0.0.1:0", "--exit-when-unused", str(UNUSED_LIMIT),
        ]  # fmt: skip

    @contextmanager
    def _log_file(self) -> Iterator[int]:
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_LIMIT:
            self._log_path.replace(self._log_path.with_suffix(".log.1"))
        descriptor = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _tell_address(self, told: Callable[[str], None]) -> None:
        try:
            address = (self._store / "address").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            _log.info("the embedded depot's address cannot be read: %s", error)
            return
        if address:
            self.address = address
            told(address)
        self.ready.set()


def socket_of(store: Path) -> Path:
    """Return the Unix socket of the embedded depot with this store."""
    return store / "depot.sock"


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
