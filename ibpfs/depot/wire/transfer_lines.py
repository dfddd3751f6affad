"""Command lines of `transfers`: parsing and writing."""

from collections.abc import Callable
from typing import Any

from ibpfs.depot.capability import BadCapability, Capability, CapabilityKind, Key
from ibpfs.depot.wire import transfers as tr
from ibpfs.depot.wire.command import Command
from ibpfs.depot.wire.errors import ErrorCode
from ibpfs.depot.wire.fields import BadField, count, integer, key, seconds, token
from ibpfs.depot.wire.protocol import MAX_NUMBER, MAX_VECTOR, Opcode

_TCP = 1
_MAX_HOST = 255
_DEFAULT_TIMEOUT = 30


# --- parsing ----------------------------------------------------------------------------------------------


def _vec_write(version: int, f: list[str]) -> tr.VecWrite:
    ranges, at = _ranges(f)
    return tr.VecWrite(key(f, 0), ranges, version=version, timeout=seconds(f, at))


def _vec_read(version: int, f: list[str]) -> tr.VecRead:
    ranges, at = _ranges(f)
    return tr.VecRead(key(f, 0), ranges, version=version, timeout=seconds(f, at))


def _ranges(f: list[str]) -> tuple[tr.Ranges, int]:
    number = count(token(f, 2))
    if number > MAX_VECTOR:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    end = 3 + 2 * number
    numbers = [count(token(f, at)) for at in range(3, end)]
    if sum(numbers[1::2]) > MAX_NUMBER:
        raise BadField(ErrorCode.WOULD_EXCEED_LIMIT)
    return tuple(zip(numbers[0::2], numbers[1::2], strict=True)), end


def _send(version: int, f: list[str]) -> tr.Send:
    offset, length = count(token(f, 3)), count(token(f, 4))
    target = _remote(token(f, 1), CapabilityKind.WRITE)
    return tr.Send(_split_key(f, 0, 2), target, offset, length, version=version, **_timeouts(f, 5))


def _push(version: int, f: list[str]) -> tr.Push:
    local, remote, offset, remote_offset, length = _copied(f, CapabilityKind.WRITE)
    if offset < 0 or remote_offset < tr.APPEND:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return tr.Push(local, remote, offset, remote_offset, length, version=version, **_timeouts(f, 7))


def _pull(version: int, f: list[str]) -> tr.Pull:
    local, remote, offset, remote_offset, length = _copied(f, CapabilityKind.READ)
    if offset < tr.APPEND or remote_offset < 0:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return tr.Pull(local, remote, offset, remote_offset, length, version=version, **_timeouts(f, 7))


def _copied(f: list[str], kind: CapabilityKind) -> tuple[Key, Capability, int, int, int]:
    if integer(token(f, 0)) != _TCP:
        raise BadField(ErrorCode.TYPE_NOT_SUPPORTED)
    offset, remote_offset, length = integer(token(f, 4)), integer(token(f, 5)), count(token(f, 6))
    return _split_key(f, 1, 3), _remote(token(f, 2), kind), offset, remote_offset, length


def _timeouts(f: list[str], at: int) -> dict[str, int]:
    target, client = _not_zero(f, at + 1), _not_zero(f, at + 2)
    return {"timeout": seconds(f, at), "target_timeout": target, "client_timeout": client}


def _not_zero(f: list[str], at: int) -> int:
    """What the other depot is told: real depots refuse 0 here, and what is cut to it."""
    if at < len(f) and seconds(f, at) == 0:
        raise BadField(ErrorCode.INVALID_PARAMETER)
    return seconds(f, at) if at < len(f) else _DEFAULT_TIMEOUT


def _deliver(version: int, f: list[str]) -> tr.Deliver:
    host, port = _place(f)
    offset, length = count(token(f, 4)), count(token(f, 5))
    return tr.Deliver(_split_key(f, 0, 3), host, port, offset, length, version=version, timeout=seconds(f, 6))


def _remote_store(version: int, f: list[str]) -> tr.RemoteStore:
    host, port = _place(f)
    length = count(token(f, 4))
    return tr.RemoteStore(_split_key(f, 0, 3), host, port, length, version=version, timeout=seconds(f, 5))


def _place(f: list[str]) -> tuple[str, int]:
    host, port = token(f, 1).strip("[]"), integer(token(f, 2))
    if not host or len(host) > _MAX_HOST:
        raise BadField(ErrorCode.INV_PAR_HOST)
    if not 0 < port < 65536:
        raise BadField(ErrorCode.INV_PAR_PORT)
    return host, port


def _split_key(f: list[str], key_at: int, type_key_at: int) -> Key:
    return key([token(f, key_at), token(f, type_key_at)], 0)


def _remote(text: str, kind: CapabilityKind) -> Capability:
    try:
        capability = Capability.parse(text)
    except BadCapability:
        raise BadField(ErrorCode.WRONG_CAP_FORMAT) from None
    if capability.kind is not kind:
        raise BadField(ErrorCode.WRONG_CAP_FORMAT)
    return capability


PARSERS: dict[int, Callable[[int, list[str]], Command]] = {
    Opcode.VEC_WRITE: _vec_write,
    Opcode.VEC_READ: _vec_read,
    Opcode.SEND: _send,
    Opcode.PUSH: _push,
    Opcode.PULL: _pull,
    Opcode.DELIVER: _deliver,
    Opcode.REMOTE_STORE: _remote_store,
}


# --- writing: the fields behind the opcode, with the timeouts ---------------------------------------------

_Fields = tuple[int | str, ...]


def _write_vector(c: tr.VecWrite | tr.VecRead) -> _Fields:
    flat = (number for one in c.ranges for number in one)
    return (c.key.key, c.key.type_key, len(c.ranges), *flat, c.timeout)


def _write_send(c: tr.Send) -> _Fields:
    where = (c.key.key, c.target.render(), c.key.type_key, c.offset, c.length)
    return (*where, c.timeout, c.target_timeout, c.client_timeout)


def _write_copy(c: tr.Push | tr.Pull) -> _Fields:
    where = (_TCP, c.key.key, c.remote.render(), c.key.type_key, c.offset, c.remote_offset, c.length)
    return (*where, c.timeout, c.target_timeout, c.client_timeout)


def _write_deliver(c: tr.Deliver) -> _Fields:
    return (c.key.key, c.host, c.port, c.key.type_key, c.offset, c.length, c.timeout)


def _write_remote_store(c: tr.RemoteStore) -> _Fields:
    return (c.key.key, c.host, c.port, c.key.type_key, c.length, c.timeout)


WRITERS: dict[type[Command], tuple[Opcode, Callable[[Any], _Fields]]] = {
    tr.VecWrite: (Opcode.VEC_WRITE, _write_vector),
    tr.VecRead: (Opcode.VEC_READ, _write_vector),
    tr.Send: (Opcode.SEND, _write_send),
    tr.Push: (Opcode.PUSH, _write_copy),
    tr.Pull: (Opcode.PULL, _write_copy),
    tr.Deliver: (Opcode.DELIVER, _write_deliver),
    tr.RemoteStore: (Opcode.REMOTE_STORE, _write_remote_store),
}
