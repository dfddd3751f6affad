"""Sizes, durations and shares as a person writes and reads them."""

import math
import re

from ibpfs.errors import UsageError

_SIZES = {"": 1, "B": 1, **{unit: 1024 ** (power + 1) for power, unit in enumerate("KMGTP")}}
_SECONDS = {"": 1.0, "MS": 0.001, "S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0, "W": 604800.0, "Y": 31536000.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Return bytes: '4096', '16M', '1.5GiB' (powers of 1024)."""
    found = _QUANTITY.fullmatch(text.strip())
    unit = re.sub(r"(?<=.)I?B$", "", found.group(2).upper()) if found else "?"
    if found is None or unit not in _SIZES:
        raise UsageError(f"{text!r} is not a size; write for example 16M or 2G")
    return int(float(found.group(1)) * _SIZES[unit]) if "." in found.group(1) else int(found.group(1)) * _SIZES[unit]


def parse_duration(text: str) -> float:
    """Return seconds: '20', '500ms', '90s', '5m', '12h', '30d', '2w', '1y'."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found.group(2).upper() not in _SECONDS:
        raise UsageError(f"{text!r} is not a duration; write for example 90s, 12h or 30d")
    return float(found.group(1)) * _SECONDS[found.group(2).upper()]


def parse_fraction(text: str) -> float:
    """Return a number from 0 to 1: '5%' or '0.05'."""
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UsageError(f"{text!r} is not a share; write for example 5%")
    return value


def format_size(size: float) -> str:
    """Return bytes for a person: '17.2 MiB'."""
    if size < 1024:
        return f"{size:.0f} B"
    power = min(int(math.log(size, 1024)), 5)
    return f"{size / 1024**power:.1f} {' KMGTP'[power]}iB"
