"""The line on a terminal that says how far something is; it goes away when that is done."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int, str], None]

#: Seconds between two looks of a person, and until a guess at the rest is worth something.
_REDRAW, _GUESS = 0.1, 2.0
_LONGEST_BAR = 36


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[Advance]:
    """A bar on a terminal; nothing in a pipe."""
    if quiet or not title or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield no_progress
        return
    started, drawn = time.monotonic(), 0.0

    def advance(done: int, total: int, text: str) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now < drawn + _REDRAW and done < total:
            return
        drawn = now
        columns = shutil.get_terminal_size().columns
        _write(f"\r{bar(text or title, done, total, now - started, columns)}\x1b[K")

    advance(0, 1, "")
    try:
        yield advance
    finally:
        _write("\r\x1b[K")


def bar(label: str, done: int, total: int, elapsed: float, columns: int) -> str:
    """One line of fewer than `columns` characters: the last one would wrap it."""
    share = min(1.0, done / max(total, 1))
    numbers = f"{share:4.0%}"
    if share and elapsed >= _GUESS:
        rest = round(elapsed * (1 - share) / share)
        numbers += f"  {rest // 60}:{rest % 60:02} left"
    width = min(_LONGEST_BAR, columns - len(label) - len(numbers) - 6)
    if width < 4:  # no room for one that says anything
        return f"{label} {numbers}"[: max(columns - 1, 0)]
    full = int(width * share)
    return f"{label}  [{'#' * full}{'-' * (width - full)}] {numbers}"


def no_progress(done: int, total: int, text: str) -> None:
    """In a pipe there is none."""


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
