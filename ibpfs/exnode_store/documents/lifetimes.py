"""Times as exNode documents write them: seconds or microseconds, or local time as text. A hint, never the truth."""

from datetime import datetime
from typing import Any, Final

_FORMAT: Final = "%Y-%m-%d %H:%M:%S"
MICRO: Final = 1_000_000
#: Numbers below it are seconds, the others microseconds.
_SECONDS_BELOW: Final = 10**11


def from_number(value: int) -> int:
    """Return Unix microseconds of a number in either unit."""
    return value * MICRO if abs(value) < _SECONDS_BELOW else value


def from_text(text: str) -> int | None:
    """Return Unix microseconds of `YYYY-MM-DD HH:MM:SS` (local time) or of digits; None when it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return from_number(int(text))
    try:
        return int(datetime.strptime(text, _FORMAT).timestamp()) * MICRO
    except (ValueError, OverflowError, OSError):
        return None


def from_any(value: Any) -> int | None:
    if isinstance(value, str):
        return from_text(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return from_number(value)
    return None


def to_text(micros: int) -> str | None:
    """Return local time as text; None when no calendar has it."""
    try:
        return datetime.fromtimestamp(micros // MICRO).strftime(_FORMAT)
    except (ValueError, OverflowError, OSError):
        return None
