"""Reply lines: parsing by the command that is answered, and writing with the blank before the LF."""

from collections.abc import Callable

from ibpfs.depot.capability import BadCapability, Capability, CapabilityKind, CapabilitySet
from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.digests import MAX_BLOCK, DigestType
from ibpfs.depot.wire.errors import ErrorCode, RemoteProtocolError
from ibpfs.depot.wire.fields import BadField, count, integer, token
from ibpfs.depot.wire.protocol import MAX_STATUS_TEXT, AllocationKind, Reliability

_MIB = 1 << 20
_MAX_BACKOFF = 3600.0


def split_reply(line: bytes) -> list[str]:
    """Fields of a line; NUL is white space, as one depot ends its status line with it."""
    try:
        return line.replace(b"\0", b" ").decode("ascii").split()
    except UnicodeDecodeError:
        raise RemoteProtocolError("a reply holds bytes that are not ASCII") from None


def parse_refusal(tokens: list[str]) -> ev.Failed | ev.Goodbye | None:
    """What any command may be answered with; None when the line is a success."""
    if not tokens:
        raise RemoteProtocolError("an empty line instead of a reply")
    if tokens[0] == "-66":
        return ev.Goodbye(_backoff(tokens[1:]))
    if not tokens[0].startswith("-"):
        return None
    with_length = len(tokens) > 1 and tokens[1].isdigit()
    try:
        return ev.Failed(integer(tokens[0]), count(tokens[1]) if with_length else None)
    except BadField:
        raise RemoteProtocolError("a reply begins with a minus and no number") from None


def parse_success(command: ev.Command, ready_seen: bool, tokens: list[str]) -> ev.Reply | int:
    """The reply to `command`. An int: that many bytes of status text follow."""
    try:
        if _answers_with_report_line(command, ready_seen):
            return _parse_report_line(tokens)
        if integer(tokens[0]) != 1:
            raise BadField
        if command.ready_first and not ready_seen:
            return ev.Ready()
        return _PARSERS.get(type(command), _parse_done)(tokens)
    except (BadField, BadCapability, ValueError):
        raise RemoteProtocolError(f"a reply that does not fit {type(command).__name__}") from None


def _answers_with_report_line(command: ev.Command, ready_seen: bool) -> bool:
    return ready_seen if isinstance(command, ev.StatusChange) else _is_old_inquiry(command)


def _is_old_inquiry(command: ev.Request) -> bool:
    return isinstance(command, ev.StatusInquire) and command.version == 0


def parse_report_text(text: bytes) -> ev.StatusReport:
    """The tags of `VS:1.4:1.0 ... RE`. Unknown ones are skipped."""
    tags = dict(tag.split(":", 1) for tag in split_reply(text) if ":" in tag)

    def number(name: str, default: int = 0) -> int:
        return integer(tags[name]) if name in tags else default

    try:
        total, used = number("CT", number("ST")), number("UT")
        return ev.StatusReport(
            total=total,
            used=used,
            free=number("AT", max(0, total - used)),
            used_stable=number("UH", used),
            max_lease=number("DR", -1),
            version_text=tags.get("VS", ""),
            rid=tags.get("RID", "1"),
        )
    except BadField:
        raise RemoteProtocolError("a status tag holds no number") from None


# --- parsing ----------------------------------------------------------------------------------------------


def _backoff(tokens: list[str]) -> float:
    try:
        seconds = float(tokens[0]) if tokens else 0.0
    except ValueError:
        return 0.0
    return min(seconds, _MAX_BACKOFF) if seconds > 0 else 0.0  # also turns NaN into 0


def _parse_allocated(tokens: list[str]) -> ev.Allocated:
    read, write, manage = (Capability.parse(token(tokens, at)) for at in (1, 2, 3))
    if (read.kind, write.kind, manage.kind) != tuple(CapabilityKind):
        raise BadField
    return ev.Allocated(CapabilitySet(read, write, manage))


def _parse_loading(tokens: list[str]) -> ev.Loading:
    return ev.Loading(count(token(tokens, 1)))


def _parse_opened(tokens: list[str]) -> ev.Opened:
    return ev.Opened(count(token(tokens, 1)))


def _parse_probed(tokens: list[str]) -> ev.Probed:
    n = [integer(token(tokens, at)) for at in range(1, 8)]
    if min(n[:4]) < 0:
        raise BadField
    return ev.Probed(n[0], n[1], n[2], n[3], n[4], Reliability(n[5]), AllocationKind(n[6]))


def _parse_stored(tokens: list[str]) -> ev.Stored:
    return ev.Stored(count(token(tokens, 1)))


def _parse_alias_probed(tokens: list[str]) -> ev.AliasProbed:
    n = [count(token(tokens, at)) for at in range(1, 5)]
    return ev.AliasProbed(n[0], n[1], n[2], n[3], integer(token(tokens, 5)))  # below 0: some keep what has ended


def _parse_digest_report(tokens: list[str]) -> ev.DigestReport:
    kind, _, block_size, blocks, length = (count(token(tokens, at)) for at in range(1, 6))
    if not 0 < block_size <= MAX_BLOCK:
        raise BadField
    return ev.DigestReport(ev.Checksum(DigestType(kind), block_size), blocks, length)


def _parse_bad_blocks(tokens: list[str]) -> ev.BadBlocks:
    return ev.BadBlocks(count(token(tokens, 1)))


def _parse_done(_: list[str]) -> ev.Done:
    return ev.Done()


def _parse_report_length(tokens: list[str]) -> int:
    length = count(token(tokens, 1))
    if length > MAX_STATUS_TEXT:
        raise BadField
    return length


def _parse_report_line(tokens: list[str]) -> ev.StatusReport:
    stable, stable_used, volatile, volatile_used, max_lease = (integer(token(tokens, at)) for at in range(5))
    total, used = max(stable, volatile) * _MIB, max(stable_used, volatile_used) * _MIB
    free = max(0, stable - stable_used) * _MIB
    return ev.StatusReport(total, used, free, stable_used * _MIB, max_lease, " ".join(tokens[5:]))


def _parse_resources(tokens: list[str]) -> ev.Resources:
    return ev.Resources(tuple(tokens[1:]))


_PARSERS: dict[type[ev.Command], Callable[[list[str]], ev.Reply | int]] = {
    ev.Allocate: _parse_allocated,
    ev.Rename: _parse_allocated,
    ev.Split: _parse_allocated,
    ev.AliasAllocate: _parse_allocated,
    ev.Store: _parse_stored,
    ev.Write: _parse_stored,
    ev.VecWrite: _parse_stored,
    ev.Send: _parse_stored,
    ev.Push: _parse_stored,
    ev.Pull: _parse_stored,
    ev.Deliver: _parse_stored,
    ev.RemoteStore: _parse_stored,
    ev.Load: _parse_loading,
    ev.VecRead: _parse_loading,
    ev.Open: _parse_opened,
    ev.Probe: _parse_probed,
    ev.AliasProbe: _parse_alias_probed,
    ev.GetDigests: _parse_digest_report,
    ev.ValidateDigests: _parse_bad_blocks,
    ev.StatusInquire: _parse_report_length,
    ev.StatusResources: _parse_resources,
}


# --- writing ----------------------------------------------------------------------------------------------


def render_reply(reply: ev.Reply, request: ev.Request) -> bytes:
    """All of the reply but the raw bytes behind `Loading`."""
    match reply:
        case ev.Allocated(c):
            return f"1 {c.read.render()} {c.write.render()} {c.manage.render()} \n".encode()
        case ev.Ready() | ev.Done():
            return b"1 \n"
        case ev.Stored(number) | ev.Loading(number) | ev.Opened(number) | ev.BadBlocks(number):
            return b"1 %d \n" % number
        case ev.Probed(reads, writes, size, max_size, left, reliability, kind):
            return b"1 %d %d %d %d %d %d %d \n" % (reads, writes, size, max_size, left, reliability, kind)
        case ev.AliasProbed(reads, writes, offset, length, left):
            return b"1 %d %d %d %d %d \n" % (reads, writes, offset, length, left)
        case ev.DigestReport(c, blocks, length):
            return b"1 %d %d %d %d %d \n" % (c.type, c.digest_size, c.block_size, blocks, length)
        case ev.StatusReport():
            as_line = isinstance(request, ev.StatusChange) or _is_old_inquiry(request)
            return _render_report_line(reply) if as_line else _render_report_text(reply)
        case ev.Resources(rids):
            return f"1 {' '.join(rids)} \n".encode()
        case ev.VersionText(lines):
            return "".join(f"{line}\n" for line in ("1 ", *lines, "END")).encode()
        case ev.Failed(code, moved):
            return b"%d \n" % code if moved is None else b"%d %d \n" % (code, moved)
        case ev.Goodbye(backoff):
            return b"%d %.6f\n" % (ErrorCode.OUT_OF_SOCKETS, backoff)


def _render_report_line(r: ev.StatusReport) -> bytes:
    total = r.total // _MIB
    used = total - min(total, r.free // _MIB)  # so that the difference, which clients compute, is honest
    return b"%d %d %d %d %d \n" % (total, used, total, used, r.max_lease)


def _render_report_text(r: ev.StatusReport) -> bytes:
    text = (
        f"VS:{r.version_text or '1.4:1.0'} DT:1  RID:{r.rid} RT:1 CT:{r.total} ST:{r.total} UT:{r.used} "
        f"UH:{r.used_stable} SH:{r.total} CH:{r.total} AT:{r.free} AH:{r.free} DR:{r.max_lease} RE \n"
    ).encode()
    return b"1 %d \n%b" % (len(text), text)
