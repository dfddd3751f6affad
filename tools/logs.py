"""Where a mount's log goes: VOLUME/log (10 MB kept), the journal where there is one, the terminal in the foreground."""

import logging
import logging.handlers
import socket
from collections.abc import Callable

from ibpfs.config import VolumePaths

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_KEPT = 10 * 1000 * 1000
#: Whose progress a person who mounts should hear: waiting for the last owner, uploading what it left.
_TELLING = ("ibpfs.mount", "ibpfs.ownership")
_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def start_logging(paths: VolumePaths, *, level: int = logging.INFO) -> None:
    """Send everything from `level` up to the volume's log and warnings to the journal."""
    root = logging.getLogger()
    root.setLevel(level)
    paths.log.mkdir(mode=0o700, exist_ok=True)
    (paths.log / "ibpfs.log").touch(0o600)  # whoever makes it, and before the process is prepared
    file = logging.handlers.RotatingFileHandler(
        paths.log / "ibpfs.log", maxBytes=_KEPT // 2, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )
    file.setFormatter(logging.Formatter(FORMAT))
    root.addHandler(file)
    journal = JournalHandler.connect()
    if journal is not None:
        journal.setLevel(logging.WARNING)
        root.addHandler(journal)
    logging.captureWarnings(True)


def log_to_terminal() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger().addHandler(handler)


class JournalHandler(logging.Handler):
    """Records as datagrams of the journal's native protocol; one that does not fit or arrive is dropped."""

    def __init__(self, door: socket.socket) -> None:
        super().__init__()
        self._door = door

    @classmethod
    def connect(cls, path: str = _JOURNAL) -> "JournalHandler | None":
        door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        door.setblocking(False)
        try:
            door.connect(path)
        except OSError:
            door.close()
            return None
        return cls(door)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record).replace("\n", " | ")
        lines = (f"PRIORITY={_PRIORITIES.get(record.levelno, 6)}", "SYSLOG_IDENTIFIER=ibpfs", f"MESSAGE={text}", "")
        try:
            self._door.send("\n".join(lines).encode("utf-8", "backslashreplace"))
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """The volume's own log has the record."""

    def close(self) -> None:
        self._door.close()
        super().close()


class NoteHandler(logging.Handler):
    """Hands to `tell` what the person who mounts should hear: warnings, and how the start goes on."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.name in _TELLING:
            self._tell(" ".join(record.getMessage().split()))
