"""The volume's log keeps 10 MB; the journal and the one who mounts get what concerns them."""

import logging
import socket
from pathlib import Path

from ibpfs_tools.logs import JournalHandler, NoteHandler


def record(level: int, name: str, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, text, None, None)


def test_journal_records(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        handler = JournalHandler.connect(str(tmp_path / "journal"))
        assert handler is not None
        handler.handle(record(logging.WARNING, "ibpfs.x", "first\nMESSAGE=forged"))
        lines = journal.recv(65536).decode().splitlines()
        assert lines == ["PRIORITY=4", "SYSLOG_IDENTIFIER=ibpfs", "MESSAGE=first | MESSAGE=forged"]
        handler.close()


def test_no_journal(tmp_path: Path) -> None:
    assert JournalHandler.connect(str(tmp_path / "none")) is None


def test_notes_for_who_mounts() -> None:
    told: list[str] = []
    handler = NoteHandler(told.append)
    here, elsewhere = "ibpfs.mount", "ibpfs.cache.files"
    for level, name in ((logging.INFO, elsewhere), (logging.WARNING, elsewhere), (logging.INFO, here)):
        handler.handle(record(level, name, f"{level} {name}"))
    assert told == ["30 ibpfs.cache.files", "20 ibpfs.mount"]
