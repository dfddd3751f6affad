"""Command lines: parsing and writing, one pair of functions per opcode."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire import managing_lines, transfer_lines
from ibpfs.depot.wire.errors import ErrorCode, LocalProtocolError
from ibpfs.depot.wire.fields import (
    BadField,
    allocation_kind,
    capability_kind,
    checksum,
    count,
    duration,
    integer,
    key,
    positive,
    reliability,
    seconds,
    token,
)
from ibpfs.depot.wire.protocol import CARRY_DATA, ManageCommand, Opcode, StatusCommand


def parse_command(line: bytes) -> ev.Request:
    """A line without its LF. Never raises: what is no command comes back as Malformed or Unsupported."""
    try:
        tokens = line.decode("ascii").split()
        version, opcode = integer(token(tokens, 0)), integer(token(tokens, 1))
    except (UnicodeDecodeError, BadField):
        return ev.Malformed(ErrorCode.BAD_FORMAT, closes_if_refused=True)
    if version < 0:
        return ev.Malformed(ErrorCode.PROT_VERS, closes_if_refused=True)
    carries_data = opcode in CARRY_DATA
    parser = _PARSERS.get(opcode)
    if parser is None:
        return ev.Unsupported(opcode, closes_if_refused=carries_data)
    try:
        return parser(min(version, 1), tokens[2:])
    except BadField as refusal:
        return ev.Malformed(refusal.code, closes_if_refused=carries_data)


def parse_limits(line: bytes) -> ev.NewLimits:
    """The line behind STATUS CHANGE."""
    try:
        tokens = line.decode("ascii").split()
        return ev.NewLimits((count(token(tokens, 0)), count(token(tokens, 1)), count(token(tokens, 2))))
    except (UnicodeDecodeError, BadField):
        return ev.NewLimits(None)


def render_command(command: ev.Command) -> bytes:
    fields = _fields(command)
    line = " ".join(map(str, (command.version, *fields)))
    if len(line.split()) != len(fields) + 1 or not (line.isascii() and line.isprintable()):
        raise LocalProtocolError("a field of a command is empty or holds blanks or control characters")
    return line.encode() + b"\n"


# --- parsing ----------------------------------------------------------------------------------------------


def _allocate(version: int, f: list[str]) -> ev.Allocate:
    rid = token(f, 0) if version else "0"
    at = 1 if version else 0
    stable, kind = reliability(token(f, at)), allocation_kind(token(f, at + 1))
    lasting = duration(token(f, at + 2), version)
    size = positive(token(f, at + 3))
    return ev.Allocate(size, lasting, stable, kind, rid, version=version, timeout=seconds(f, at + 4))


def _store(version: int, f: list[str]) -> ev.Store:
    return ev.Store(key(f, 0), count(token(f, 2)), version=version, timeout=seconds(f, 3))


def _write(version: int, f: list[str]) -> ev.Write:
    offset, length = count(token(f, 2)), count(token(f, 3))
    return ev.Write(key(f, 0), offset, length, version=version, timeout=seconds(f, 4))


def _load(version: int, f: list[str]) -> ev.Load:
    offset, length = count(token(f, 2)), count(token(f, 3))
    return ev.Load(key(f, 0), offset, length, version=version, timeout=seconds(f, 4))


def _open(version: int, f: list[str]) -> ev.Open:
    return ev.Open(key(f, 0), version=version, timeout=seconds(f, 2))


def _manage(version: int, f: list[str]) -> ev.Command:
    parser = _MANAGE_PARSERS.get(integer(token(f, 2)))
    if parser is None:
        raise BadField(ErrorCode.BAD_FORMAT)
    return parser(version, f)


def _probe(version: int, f: list[str]) -> ev.Probe:
    return ev.Probe(key(f, 0), version=version, timeout=_loose_timeout(f))


def _increment(version: int, f: list[str]) -> ev.Increment:
    return ev.Increment(key(f, 0), capability_kind(token(f, 3)), version=version, timeout=_loose_timeout(f))


def _decrement(version: int, f: list[str]) -> ev.Decrement:
    return ev.Decrement(key(f, 0), capability_kind(token(f, 3)), version=version, timeout=_loose_timeout(f))


def _change(version: int, f: list[str]) -> ev.Change:
    max_size, wanted = integer(token(f, 4)), token(f, 6)
    if max_size <= 0:
        raise BadField(ErrorCode.WOULD_DAMAGE_DATA)
    lasting = duration(token(f, 5), version)
    kept = None if integer(wanted) == -1 else reliability(wanted)
    return ev.Change(key(f, 0), max_size, lasting, kept, version=version, timeout=seconds(f, 7))


def _truncate(version: int, f: list[str]) -> ev.Truncate:
    return ev.Truncate(key(f, 0), count(token(f, 3)), version=version, timeout=seconds(f, 4))


def _status(version: int, f: list[str]) -> ev.Command:
    first = token(f, 0)
    # Version 1 names a resource before INQUIRE and CHANGE only: `1 4 RID 1 PASSWORD T`, but `1 4 3 T`.
    has_rid = bool(version) and len(f) >= (4 if first == "4" else 3) and f[1] in ("1", "2")
    rid = first if has_rid else "0"
    rest = f[1:] if has_rid else f
    match integer(token(rest, 0)):
        case StatusCommand.INQUIRE:
            return ev.StatusInquire(rid, token(rest, 1), version=version, timeout=seconds(rest, 2))
        case StatusCommand.CHANGE:
            return ev.StatusChange(rid, token(rest, 1), version=version, timeout=seconds(rest, 2))
        case StatusCommand.RESOURCES:
            return ev.StatusResources(version=version, timeout=seconds(rest, 1))
        case StatusCommand.STATISTICS:
            return ev.StatusStatistics(version=version, timeout=seconds(rest, 2))
        case StatusCommand.VERSION:
            return ev.StatusVersion(version=version, timeout=seconds(rest, 1))
    raise BadField


def _loose_timeout(f: list[str]) -> int:
    # Old clients send five fields after any sub-command, newer ones only the last of them.
    return seconds(f, 7 if len(f) > 7 else 4)


def _plain_or_with_checksum(parser: Callable[[int, list[str]], Any]) -> Callable[[int, list[str]], ev.Command]:
    """For allocations: CSTYPE 0 keeps no digests."""

    def parse(version: int, f: list[str]) -> ev.Command:
        if token(f, 0) == "0":
            command: ev.Command = parser(version, f[2:])
            return command
        return _with_checksum(parser)(version, f)

    return parse


def _with_checksum(parser: Callable[[int, list[str]], Any]) -> Callable[[int, list[str]], ev.Command]:
    def parse(version: int, f: list[str]) -> ev.Command:
        digests = checksum(f)
        command: ev.Command = replace(parser(version, f[2:]), checksum=digests)
        return command

    return parse


_PARSERS: dict[int, Callable[[int, list[str]], ev.Command]] = {
    Opcode.ALLOCATE: _allocate,
    Opcode.STORE: _store,
    Opcode.STATUS: _status,
    Opcode.LOAD: _load,
    Opcode.OPEN: _open,
    Opcode.MANAGE: _manage,
    Opcode.WRITE: _write,
    **transfer_lines.PARSERS,
    **managing_lines.PARSERS,
}
_PARSERS |= {
    Opcode.ALLOCATE_CHKSUM: _plain_or_with_checksum(_allocate),
    Opcode.SPLIT_ALLOCATE_CHKSUM: _plain_or_with_checksum(_PARSERS[Opcode.SPLIT_ALLOCATE]),
    Opcode.STORE_CHKSUM: _with_checksum(_store),
    Opcode.WRITE_CHKSUM: _with_checksum(_write),
    Opcode.LOAD_CHKSUM: _with_checksum(_load),
    Opcode.VEC_WRITE_CHKSUM: _with_checksum(_PARSERS[Opcode.VEC_WRITE]),
    Opcode.VEC_READ_CHKSUM: _with_checksum(_PARSERS[Opcode.VEC_READ]),
}
_MANAGE_PARSERS: dict[int, Callable[[int, list[str]], ev.Command]] = {
    ManageCommand.PROBE: _probe,
    ManageCommand.INCR: _increment,
    ManageCommand.DECR: _decrement,
    ManageCommand.CHNG: _change,
    ManageCommand.TRUNCATE: _truncate,
}


# --- writing ----------------------------------------------------------------------------------------------

_Fields = tuple[int | str, ...]
_CHECKSUM_OPCODES = {
    Opcode.ALLOCATE: Opcode.ALLOCATE_CHKSUM,
    Opcode.SPLIT_ALLOCATE: Opcode.SPLIT_ALLOCATE_CHKSUM,
    Opcode.STORE: Opcode.STORE_CHKSUM,
    Opcode.WRITE: Opcode.WRITE_CHKSUM,
    Opcode.LOAD: Opcode.LOAD_CHKSUM,
    Opcode.VEC_WRITE: Opcode.VEC_WRITE_CHKSUM,
    Opcode.VEC_READ: Opcode.VEC_READ_CHKSUM,
}


def _fields(command: ev.Command) -> _Fields:
    """All but the version."""
    opcode, write = _WRITERS[type(command)]
    digests: ev.Checksum | None = getattr(command, "checksum", None)
    if digests is None:
        return (int(opcode), *write(command))
    return (int(_CHECKSUM_OPCODES[opcode]), int(digests.type), digests.block_size, *write(command))


def _write_allocate(c: ev.Allocate) -> _Fields:
    rid = (c.rid,) if c.version else ()
    return (*rid, int(c.reliability), int(c.kind), c.duration, c.size, c.timeout)


def _write_store(c: ev.Store) -> _Fields:
    return (c.key.key, c.key.type_key, c.length, c.timeout)


def _write_range(c: ev.Write | ev.Load) -> _Fields:
    return (c.key.key, c.key.type_key, c.offset, c.length, c.timeout)


def _write_open(c: ev.Open) -> _Fields:
    return (c.key.key, c.key.type_key, c.timeout)


def _managing(c: ev.Probe | ev.Increment | ev.Decrement | ev.Change | ev.Truncate, sub: int) -> _Fields:
    return (c.key.key, c.key.type_key, int(sub))


def _write_probe(c: ev.Probe) -> _Fields:
    return (*_managing(c, ManageCommand.PROBE), int(CapabilityKind.MANAGE), 0, 0, 0, c.timeout)


def _write_increment(c: ev.Increment) -> _Fields:
    return (*_managing(c, ManageCommand.INCR), int(c.counted), c.timeout)


def _write_decrement(c: ev.Decrement) -> _Fields:
    return (*_managing(c, ManageCommand.DECR), int(c.counted), c.timeout)


def _write_change(c: ev.Change) -> _Fields:
    kept = -1 if c.reliability is None else int(c.reliability)
    counted = int(CapabilityKind.MANAGE)
    return (*_managing(c, ManageCommand.CHNG), counted, c.max_size, c.duration, kept, c.timeout)


def _write_truncate(c: ev.Truncate) -> _Fields:
    return (*_managing(c, ManageCommand.TRUNCATE), c.size, c.timeout)


def _write_inquire(c: ev.StatusInquire | ev.StatusChange) -> _Fields:
    rid = (c.rid,) if c.version else ()
    sub = StatusCommand.INQUIRE if isinstance(c, ev.StatusInquire) else StatusCommand.CHANGE
    return (*rid, int(sub), c.password, c.timeout)


def _write_resources(c: ev.StatusResources) -> _Fields:
    return (int(StatusCommand.RESOURCES), c.timeout)


def _write_statistics(c: ev.StatusStatistics) -> _Fields:
    return (int(StatusCommand.STATISTICS), 0, c.timeout)


def _write_version(c: ev.StatusVersion) -> _Fields:
    return (int(StatusCommand.VERSION), c.timeout)


_WRITERS: dict[type[ev.Command], tuple[Opcode, Callable[[Any], _Fields]]] = {
    ev.Allocate: (Opcode.ALLOCATE, _write_allocate),
    ev.Store: (Opcode.STORE, _write_store),
    ev.Write: (Opcode.WRITE, _write_range),
    ev.Load: (Opcode.LOAD, _write_range),
    ev.Open: (Opcode.OPEN, _write_open),
    ev.Probe: (Opcode.MANAGE, _write_probe),
    ev.Increment: (Opcode.MANAGE, _write_increment),
    ev.Decrement: (Opcode.MANAGE, _write_decrement),
    ev.Change: (Opcode.MANAGE, _write_change),
    ev.Truncate: (Opcode.MANAGE, _write_truncate),
    ev.StatusInquire: (Opcode.STATUS, _write_inquire),
    ev.StatusChange: (Opcode.STATUS, _write_inquire),
    ev.StatusResources: (Opcode.STATUS, _write_resources),
    ev.StatusStatistics: (Opcode.STATUS, _write_statistics),
    ev.StatusVersion: (Opcode.STATUS, _write_version),
    **transfer_lines.WRITERS,
    **managing_lines.WRITERS,
}
