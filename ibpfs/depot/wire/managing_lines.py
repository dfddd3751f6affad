"""Command lines of `managing`: parsing and writing."""

from collections.abc import Callable
from typing import Any

from ibpfs.depot.wire import managing as mg
from ibpfs.depot.wire.command import Command
from ibpfs.depot.wire.errors import ErrorCode
from ibpfs.depot.wire.fields import (
    BadField,
    allocation_kind,
    capability_kind,
    count,
    duration,
    integer,
    key,
    positive,
    reliability,
    seconds,
    token,
)
from ibpfs.depot.wire.protocol import ManageCommand, Opcode

# --- parsing ----------------------------------------------------------------------------------------------


def _rename(version: int, f: list[str]) -> mg.Rename:
    return mg.Rename(key(f, 0), version=version, timeout=seconds(f, 2))


def _split(version: int, f: list[str]) -> mg.Split:
    return mg.Split(
        key(f, 0),
        positive(token(f, 5)),
        duration(token(f, 4), version),
        reliability(token(f, 2)),
        allocation_kind(token(f, 3)),
        version=version,
        timeout=seconds(f, 6),
    )


def _merge(version: int, f: list[str]) -> mg.Merge:
    return mg.Merge(key(f, 0), key(f, 2), version=version, timeout=seconds(f, 4))


def _alias_allocate(version: int, f: list[str]) -> mg.AliasAllocate:
    lasting = _alias_duration(token(f, 4))
    offset, length = count(token(f, 2)), count(token(f, 3))
    return mg.AliasAllocate(key(f, 0), offset, length, lasting, version=version, timeout=seconds(f, 5))


def _alias_manage(version: int, f: list[str]) -> Command:
    parser = _ALIAS_PARSERS.get(integer(token(f, 2)))
    if parser is None:
        raise BadField(ErrorCode.BAD_FORMAT)
    return parser(version, f)


def _alias_probe(version: int, f: list[str]) -> mg.AliasProbe:
    return mg.AliasProbe(key(f, 0), version=version, timeout=seconds(f, 4))


def _alias_increment(version: int, f: list[str]) -> mg.AliasIncrement:
    counted = capability_kind(token(f, 3))
    return mg.AliasIncrement(key(f, 0), counted, key(f, 4), version=version, timeout=seconds(f, 6))


def _alias_decrement(version: int, f: list[str]) -> mg.AliasDecrement:
    counted = capability_kind(token(f, 3))
    return mg.AliasDecrement(key(f, 0), counted, key(f, 4), version=version, timeout=seconds(f, 6))


def _alias_change(version: int, f: list[str]) -> mg.AliasChange:
    # One client leaves the capability's kind out: then the parent's key, which is no number, comes one field earlier.
    at = 4 if _is_number(token(f, 6)) else 3
    window = count(token(f, at)), count(token(f, at + 1)), _alias_duration(token(f, at + 2))
    return mg.AliasChange(key(f, 0), *window, key(f, at + 3), version=version, timeout=seconds(f, at + 5))


def _alias_duration(text: str) -> int:
    lasting = integer(text)
    if lasting < -1:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return lasting


def _is_number(text: str) -> bool:
    try:
        integer(text)
    except BadField:
        return False
    return True


def _get_digests(version: int, f: list[str]) -> mg.GetDigests:
    return mg.GetDigests(key(f, 0), integer(token(f, 2)) != 0, version=version, timeout=seconds(f, 3))


def _validate_digests(version: int, f: list[str]) -> mg.ValidateDigests:
    return mg.ValidateDigests(key(f, 0), integer(token(f, 2)) != 0, version=version, timeout=seconds(f, 3))


_ALIAS_PARSERS: dict[int, Callable[[int, list[str]], Command]] = {
    ManageCommand.PROBE: _alias_probe,
    ManageCommand.INCR: _alias_increment,
    ManageCommand.DECR: _alias_decrement,
    ManageCommand.CHNG: _alias_change,
}
PARSERS: dict[int, Callable[[int, list[str]], Command]] = {
    Opcode.RENAME: _rename,
    Opcode.SPLIT_ALLOCATE: _split,
    Opcode.MERGE_ALLOCATE: _merge,
    Opcode.ALIAS_ALLOCATE: _alias_allocate,
    Opcode.ALIAS_MANAGE: _alias_manage,
    Opcode.GET_CHKSUM: _get_digests,
    Opcode.VALIDATE_CHKSUM: _validate_digests,
}


# --- writing: the fields behind the opcode, with the timeout ----------------------------------------------

_Fields = tuple[int | str, ...]


def _write_rename(c: mg.Rename) -> _Fields:
    return (c.key.key, c.key.type_key, c.timeout)


def _write_split(c: mg.Split) -> _Fields:
    return (c.key.key, c.key.type_key, int(c.reliability), int(c.kind), c.duration, c.size, c.timeout)


def _write_merge(c: mg.Merge) -> _Fields:
    return (c.key.key, c.key.type_key, c.child.key, c.child.type_key, c.timeout)


def _write_alias_allocate(c: mg.AliasAllocate) -> _Fields:
    return (c.key.key, c.key.type_key, c.offset, c.length, c.duration, c.timeout)


def _write_alias_probe(c: mg.AliasProbe) -> _Fields:
    return (c.key.key, c.key.type_key, int(ManageCommand.PROBE), 3, c.timeout)


def _write_alias_count(c: mg.AliasIncrement | mg.AliasDecrement) -> _Fields:
    sub = ManageCommand.INCR if isinstance(c, mg.AliasIncrement) else ManageCommand.DECR
    return (c.key.key, c.key.type_key, int(sub), int(c.counted), c.parent.key, c.parent.type_key, c.timeout)


def _write_alias_change(c: mg.AliasChange) -> _Fields:
    window = (int(ManageCommand.CHNG), 3, c.offset, c.length, c.duration)
    return (c.key.key, c.key.type_key, *window, c.parent.key, c.parent.type_key, c.timeout)


def _write_get_digests(c: mg.GetDigests) -> _Fields:
    return (c.key.key, c.key.type_key, int(c.info_only), c.timeout)


def _write_validate_digests(c: mg.ValidateDigests) -> _Fields:
    return (c.key.key, c.key.type_key, int(c.correct), c.timeout)


WRITERS: dict[type[Command], tuple[Opcode, Callable[[Any], _Fields]]] = {
    mg.Rename: (Opcode.RENAME, _write_rename),
    mg.Split: (Opcode.SPLIT_ALLOCATE, _write_split),
    mg.Merge: (Opcode.MERGE_ALLOCATE, _write_merge),
    mg.AliasAllocate: (Opcode.ALIAS_ALLOCATE, _write_alias_allocate),
    mg.AliasProbe: (Opcode.ALIAS_MANAGE, _write_alias_probe),
    mg.AliasIncrement: (Opcode.ALIAS_MANAGE, _write_alias_count),
    mg.AliasDecrement: (Opcode.ALIAS_MANAGE, _write_alias_count),
    mg.AliasChange: (Opcode.ALIAS_MANAGE, _write_alias_change),
    mg.GetDigests: (Opcode.GET_CHKSUM, _write_get_digests),
    mg.ValidateDigests: (Opcode.VALIDATE_CHKSUM, _write_validate_digests),
}
