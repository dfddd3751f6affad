"""Lists of depots as people keep them: our lines, LoRS' `DEPOT host port`, libdlt's depots.json; and hints. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ibpfs.depot.address import Address, BadAddress
from ibpfs.errors import UsageError


@dataclass(frozen=True, slots=True)
class ListedDepot:
    """An address and what is said of the place."""

    address: Address
    labels: dict[str, str] = field(default_factory=dict)


def parse_list(text: str) -> list[ListedDepot]:
    """Return the depots of a list, each once. UsageError names the line."""
    found = _from_json(text) if text.lstrip().startswith(("[", "{")) else _from_lines(text)
    unique: dict[Address, ListedDepot] = {}
    for depot in found:
        unique.setdefault(depot.address, depot)
    return list(unique.values())


def _from_lines(text: str) -> list[ListedDepot]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            found.append(_from_words(words))
        except (BadAddress, UsageError) as error:
            raise UsageError(f"line {number}: {error}") from None
    return found


def _from_words(words: list[str]) -> ListedDepot:
    if words[0].upper() == "DEPOT" and len(words) >= 3:
        return ListedDepot(Address.parse(f"ibp://{words[1]}:{words[2]}"), parse_labels(words[3:]))
    return ListedDepot(Address.parse(words[0]), parse_labels(words[1:]))


def parse_labels(words: Iterable[str]) -> dict[str, str]:
    """Return what `NAME=VALUE` words say."""
    labels = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{word!r} is not of the form NAME=VALUE")
        labels[name] = value
    return labels


def _from_json(text: str) -> list[ListedDepot]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not well-formed JSON: {error}") from None
    rows = list(found.values()) if isinstance(found, dict) else found
    return [_from_object(row) for row in rows if not isinstance(row, dict) or row.get("enabled", True)]


def _from_object(row: Any) -> ListedDepot:
    """A service as libdlt and UNIS have it."""
    if not isinstance(row, dict) or not isinstance(row.get("accessPoint"), str):
        raise UsageError("a depot without accessPoint")
    place = row.get("location")
    labels = {str(k): str(v) for k, v in place.items() if v not in ("", None)} if isinstance(place, dict) else {}
    try:
        return ListedDepot(Address.parse(row["accessPoint"]), labels)
    except BadAddress as error:
        raise UsageError(str(error)) from None


def order(depots: Sequence[ListedDepot], hints: dict[str, str]) -> list[Address]:
    """Return the addresses, those of which more hints are true first, else as they were listed."""

    def misses(depot: ListedDepot) -> int:
        return sum(depot.labels.get(name, "").casefold() != value.casefold() for name, value in hints.items())

    return [depot.address for depot in sorted(depots, key=misses)]
