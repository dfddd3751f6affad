"""Command lines: parsing and writing, one pair of functions per opcode."""

from collections.abc import Callable

from ibpfs.depot.capability import CapabilityKind
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.errors import ErrorCode, LocalProtocolError
from ibpfs.depot.wire.fields import BadField, count, integer, key, positive, seconds, token
from ibpfs.depot.wire.protocol import (
    CARRY_DATA,
    AllocationKind,
    ManageCommand,
    Opcode,
    Reliability,
    StatusCommand,
)


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


def render_command(command: ev.Command) -> bytes:
    fields = _WRITERS[type(command)](command)
    line = " ".join(map(str, (command.version, *fields, command.timeout)))
    if len(line.split()) != len(fields) + 2 or not (line.isascii() and line.isprintable()):
        raise LocalProtocolError("a field of a command is empty or holds blanks or control characters")
    return line.encode() + b"\n"


# --- parsing ----------------------------------------------------------------------------------------------


def _allocate(version: int, f: list[str]) -> ev.Allocate:
    rid = token(f, 0) if version else "0"
    at = 1 if version else 0
    reliability = _reliability(integer(token(f, at)))
    kind = _kind(integer(token(f, at + 1)))
    duration = integer(token(f, at + 2))
    if duration < -1 or (version and duration == 0):
        raise BadField(ErrorCode.INVALID_PARAMETER)
    size = positive(token(f, at + 3))
    return ev.Allocate(size, duration, reliability, kind, rid, version=version, timeout=seconds(f, at + 4))


def _store(version: int, f: list[str]) -> ev.Store:
    return ev.Store(key(f, 0), count(token(f, 2)), version=version, timeout=seconds(f, 3))


def _write(version: int, f: list[str]) -> ev.Write:
    offset, length = count(token(f, 2)), count(token(f, 3))
    return ev.Write(key(f, 0), offset, length, version=version, timeout=seconds(f, 4))


def _load(version: int, f: list[str]) -> ev.Load:
    offset, length = count(token(f, 2)), count(token(f, 3))
    return ev.Load(key(f, 0), offset, length, version=version, timeout=seconds(f, 4))


def _manage(version: int, f: list[str]) -> ev.Command:
    parser = _MANAGE_PARSERS.get(integer(token(f, 2)))
    if parser is None:
        raise BadField(ErrorCode.BAD_FORMAT)
    return parser(version, f)


def _probe(version: int, f: list[str]) -> ev.Probe:
    return ev.Probe(key(f, 0), version=version, timeout=_loose_timeout(f))


def _increment(version: int, f: list[str]) -> ev.Increment:
    return ev.Increment(key(f, 0), _counted(f), version=version, timeout=_loose_timeout(f))


def _decrement(version: int, f: list[str]) -> ev.Decrement:
    return ev.Decrement(key(f, 0), _counted(f), version=version, timeout=_loose_timeout(f))


def _change(version: int, f: list[str]) -> ev.Change:
    max_size, duration, wanted = integer(token(f, 4)), integer(token(f, 5)), integer(token(f, 6))
    if max_size <= 0:
        raise BadField(ErrorCode.WOULD_DAMAGE_DATA)
    if duration < -1 or (version and duration == 0):
        raise BadField(ErrorCode.INVALID_PARAMETER)
    reliability = None if wanted == -1 else _reliability(wanted)
    return ev.Change(key(f, 0), max_size, duration, reliability, version=version, timeout=seconds(f, 7))


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


def _counted(f: list[str]) -> CapabilityKind:
    try:
        return CapabilityKind(integer(token(f, 3)))
    except ValueError:
        raise BadField(ErrorCode.INVALID_PARAMETER) from None


def _reliability(number: int) -> Reliability:
    try:
        return Reliability(number)
    except ValueError:
        raise BadField(ErrorCode.BAD_FORMAT) from None


def _kind(number: int) -> AllocationKind:
    try:
        return AllocationKind(number)
    except ValueError:
        raise BadField(ErrorCode.INVALID_PARAMETER) from None


_PARSERS: dict[int, Callable[[int, list[str]], ev.Command]] = {
    Opcode.ALLOCATE: _allocate,
    Opcode.STORE: _store,
    Opcode.STATUS: _status,
    Opcode.LOAD: _load,
    Opcode.MANAGE: _manage,
    Opcode.WRITE: _write,
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


def _write_allocate(c: ev.Allocate) -> _Fields:
    rid = (c.rid,) if c.version else ()
    return (int(Opcode.ALLOCATE), *rid, int(c.reliability), int(c.kind), c.duration, c.size)


def _write_store(c: ev.Store) -> _Fields:
    return (int(Opcode.STORE), c.key.key, c.key.type_key, c.length)


def _write_write(c: ev.Write) -> _Fields:
    return (int(Opcode.WRITE), c.key.key, c.key.type_key, c.offset, c.length)


def _write_load(c: ev.Load) -> _Fields:
    return (int(Opcode.LOAD), c.key.key, c.key.type_key, c.offset, c.length)


def _managing(c: ev.Probe | ev.Increment | ev.Decrement | ev.Change | ev.Truncate, sub: int) -> _Fields:
    return (int(Opcode.MANAGE), c.key.key, c.key.type_key, int(sub))


def _write_probe(c: ev.Probe) -> _Fields:
    return (*_managing(c, ManageCommand.PROBE), int(CapabilityKind.MANAGE), 0, 0, 0)


def _write_increment(c: ev.Increment) -> _Fields:
    return (*_managing(c, ManageCommand.INCR), int(c.counted))


def _write_decrement(c: ev.Decrement) -> _Fields:
    return (*_managing(c, ManageCommand.DECR), int(c.counted))


def _write_change(c: ev.Change) -> _Fields:
    reliability = -1 if c.reliability is None else int(c.reliability)
    counted = int(CapabilityKind.MANAGE)
    return (*_managing(c, ManageCommand.CHNG), counted, c.max_size, c.duration, reliability)


def _write_truncate(c: ev.Truncate) -> _Fields:
    return (*_managing(c, ManageCommand.TRUNCATE), c.size)


def _write_inquire(c: ev.StatusInquire | ev.StatusChange) -> _Fields:
    rid = (c.rid,) if c.version else ()
    sub = StatusCommand.INQUIRE if isinstance(c, ev.StatusInquire) else StatusCommand.CHANGE
    return (int(Opcode.STATUS), *rid, int(sub), c.password)


def _write_resources(_: ev.StatusResources) -> _Fields:
    return (int(Opcode.STATUS), int(StatusCommand.RESOURCES))


def _write_statistics(_: ev.StatusStatistics) -> _Fields:
    return (int(Opcode.STATUS), int(StatusCommand.STATISTICS), 0)


def _write_version(_: ev.StatusVersion) -> _Fields:
    return (int(Opcode.STATUS), int(StatusCommand.VERSION))


_WRITERS: dict[type[ev.Command], Callable[..., _Fields]] = {
    ev.Allocate: _write_allocate,
    ev.Store: _write_store,
    ev.Write: _write_write,
    ev.Load: _write_load,
    ev.Probe: _write_probe,
    ev.Increment: _write_increment,
    ev.Decrement: _write_decrement,
    ev.Change: _write_change,
    ev.Truncate: _write_truncate,
    ev.StatusInquire: _write_inquire,
    ev.StatusChange: _write_inquire,
    ev.StatusResources: _write_resources,
    ev.StatusStatistics: _write_statistics,
    ev.StatusVersion: _write_version,
}
