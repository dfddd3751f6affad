"""One IBP connection as a state machine: bytes in, events out; events in, bytes out. Knows no socket.

Data behind a line may bypass it: `raw_remaining` says how many bytes are still to come,
`take_raw` hands out those already buffered, `skip_raw` accounts for those received elsewhere.
"""

from collections import deque
from enum import Enum

from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.buffer import LineTooLong, ReceiveBuffer
from ibpfs.depot.wire.commands import parse_command, parse_limits, render_command
from ibpfs.depot.wire.digests import framed_length
from ibpfs.depot.wire.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from ibpfs.depot.wire.protocol import MAX_LINE, MAX_PIPELINED, MAX_VERSION_LINES
from ibpfs.depot.wire.replies import (
    parse_refusal,
    parse_report_text,
    parse_success,
    render_reply,
    split_reply,
)


class Role(Enum):
    CLIENT = "client"
    SERVER = "server"


class Connection:
    """`must_close`: after what was sent or received, this connection carries no further command."""

    def __init__(self, role: Role, max_line: int = MAX_LINE) -> None:
        self.role = role
        self.must_close = False
        self._buffer = ReceiveBuffer(max_line)
        self._eof = False
        self._outstanding: deque[ev.Request] = deque()  # commands whose last reply is still owed
        self._ready_passed = False  # the first of these has had its Ready
        self._raw = 0
        self._raw_open = False  # EndOfData is still to be announced
        self._blocked = False  # server: nothing may be parsed before a reply (or ever)
        self._text_length: int | None = None
        self._version_lines: list[str] | None = None
        self._limits_wanted = False  # server: the next line is no command

    # --- state ---

    @property
    def raw_remaining(self) -> int:
        """Raw bytes still to come, those in the buffer included."""
        return self._raw

    @property
    def outstanding(self) -> int:
        """Commands that still wait for their last reply."""
        return len(self._outstanding)

    @property
    def buffered(self) -> int:
        """Bytes that have come and are not consumed."""
        return len(self._buffer)

    @property
    def mid_line(self) -> bool:
        """The beginning of something is in the buffer, and its rest is not."""
        return len(self._buffer) > 0

    @property
    def idle(self) -> bool:
        """Between commands and reusable: nothing owed, nothing buffered, nobody closed."""
        owed = self._outstanding or self._raw_open or len(self._buffer)
        return not (owed or self.must_close or self._eof)

    # --- bytes in ---

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer.append(data)

    def forget(self) -> None:
        """What has come and is not consumed will not be: the connection ends."""
        self._buffer.clear()
        self._blocked = True

    def receive_eof(self) -> None:
        self._eof = True

    def take_raw(self, limit: int) -> bytes:
        """Raw bytes that are buffered already; b"" when there are none."""
        if not self._raw:
            return b""
        piece = self._buffer.take(min(limit, self._raw))
        self._raw -= len(piece)
        return piece

    def skip_raw(self, received: int) -> None:
        """`received` raw bytes came past this object."""
        if len(self._buffer) or not 0 <= received <= self._raw:
            raise LocalProtocolError("raw bytes taken around the codec out of turn")
        self._raw -= received

    def next_event(self) -> ev.Event:
        """Raises RemoteProtocolError (client only; a server gets Malformed)."""
        if self._raw_open:
            return self._next_raw()
        if self._blocked or (self.role is Role.CLIENT and self.must_close):
            return ev.PAUSED
        return self._next_command() if self.role is Role.SERVER else self._next_reply()

    def _next_raw(self) -> ev.Event:
        if self._raw == 0:
            self._raw_open = False
            if self.role is Role.CLIENT:
                self._finish()
            return ev.EndOfData()
        if piece := self.take_raw(self._raw):
            return ev.Data(piece)
        return self._starved()

    def _starved(self) -> ev.ClosedByPeer | ev.Waiting:
        if not self._eof:
            return ev.NEED_DATA
        client_waits = self.role is Role.CLIENT and self._outstanding
        return ev.ClosedByPeer(clean=not (client_waits or self._raw or len(self._buffer)))

    # --- server ---

    def _next_command(self) -> ev.Event:
        if len(self._outstanding) >= MAX_PIPELINED:
            return ev.PAUSED
        try:
            line = self._buffer.next_line()
        except LineTooLong:
            self._buffer.clear()
            return self._expect_reply(ev.Malformed(ErrorCode.BAD_FORMAT, closes_if_refused=True))
        if line is None:
            return self._starved()
        if self._limits_wanted:
            self._limits_wanted, self._blocked = False, True
            return parse_limits(line)
        return self._expect_reply(parse_command(line))

    def _expect_reply(self, request: ev.Request) -> ev.Request:
        self._outstanding.append(request)
        self._blocked = request.carries_data or request.closes_if_refused
        return request

    def _send_reply(self, reply: ev.Reply) -> bytes:
        if isinstance(reply, ev.Goodbye):
            self.must_close = self._blocked = True
            return render_reply(reply, _NOBODY)
        if not self._outstanding:
            raise LocalProtocolError("a reply to nothing")
        request = self._outstanding[0]
        if not isinstance(reply, self._fitting(request)):
            raise LocalProtocolError(f"{type(reply).__name__} is no reply to {type(request).__name__}")
        sent = render_reply(reply, request)
        if isinstance(reply, ev.Ready):
            self._let_follow(request)
            return sent
        data_under_way = request.closes_if_refused and (self._raw > 0 or not self._ready_passed)
        if isinstance(reply, ev.Failed) and data_under_way:
            self.must_close = self._blocked = True
        elif request.closes_if_refused:  # then nothing was parsed behind it
            self._blocked = False
        self._raw, self._raw_open = 0, False
        self._finish()
        return sent

    def _let_follow(self, request: ev.Request) -> None:
        self._ready_passed = True
        self._blocked = False
        if isinstance(request, ev.Store | ev.Write | ev.VecWrite):
            self._raw, self._raw_open = request.wire_length, True
        self._limits_wanted = isinstance(request, ev.StatusChange)

    def _fitting(self, request: ev.Request) -> tuple[type[ev.Reply], ...]:
        if self._raw:
            return (ev.Failed,)  # in the middle of the data: closes
        if request.ready_first and not self._ready_passed:
            return (ev.Ready, ev.Failed)
        return (*_REPLIES.get(type(request), ()), ev.Failed)

    # --- client ---

    def _next_reply(self) -> ev.Event:
        if self._text_length is not None:
            return self._next_report_text()
        if self._version_lines is not None:
            return self._next_version_text()
        line = self._next_reply_line()
        return self._starved() if line is None else self._parse_reply(split_reply(line))

    def _next_reply_line(self) -> bytes | None:
        try:
            return self._buffer.next_line()
        except LineTooLong:
            raise RemoteProtocolError(f"a reply line longer than {MAX_LINE} bytes") from None

    def _parse_reply(self, tokens: list[str]) -> ev.Event:
        refusal = parse_refusal(tokens)
        if isinstance(refusal, ev.Goodbye):
            self.must_close = True
            return refusal
        if not self._outstanding:
            raise RemoteProtocolError("a reply to nothing")
        command = self._outstanding[0]
        assert isinstance(command, ev.Command)
        if refusal is not None:
            # Bytes may be on their way to a peer that did not want them.
            self.must_close = self.must_close or command.closes_if_refused
            self._finish()
            return refusal
        return self._accept(command, parse_success(command, self._ready_passed, tokens))

    def _accept(self, command: ev.Command, reply: ev.Reply | int) -> ev.Event:
        if isinstance(reply, int):
            self._text_length = reply
            return self._next_report_text()
        if isinstance(command, ev.StatusVersion):
            self._version_lines = []
            return self._next_version_text()
        if isinstance(reply, ev.Ready):
            self._ready_passed = True
            return reply
        if (raw := _bytes_behind(command, reply)) is not None:
            self._raw, self._raw_open = raw, True
            return reply
        self._finish()
        return reply

    def _next_report_text(self) -> ev.Event:
        assert self._text_length is not None
        if len(self._buffer) < self._text_length:
            return self._starved()
        text = self._buffer.take(self._text_length)
        self._text_length = None
        self._finish()
        return parse_report_text(text)

    def _next_version_text(self) -> ev.Event:
        lines = self._version_lines
        assert lines is not None
        while (line := self._next_reply_line()) is not None:
            if line.strip() == b"END":
                self._version_lines = None
                self._finish()
                return ev.VersionText(tuple(lines))
            if len(lines) >= MAX_VERSION_LINES:
                raise RemoteProtocolError("a version text without an end")
            lines.append(line.decode("ascii", "replace").rstrip())
        return self._starved()

    # --- both ---

    def send(self, event: ev.Command | ev.Reply) -> bytes:
        """The bytes to send. Raw data goes out behind them without passing here."""
        if self.must_close and not isinstance(event, ev.Goodbye):
            raise LocalProtocolError("nothing may be sent on a connection that must close")
        if self.role is Role.SERVER:
            if isinstance(event, ev.Command):
                raise LocalProtocolError("a server sends replies")
            return self._send_reply(event)
        if not isinstance(event, ev.Command):
            raise LocalProtocolError("a client sends commands")
        line = render_command(event)
        self._outstanding.append(event)
        return line

    def _finish(self) -> None:
        self._outstanding.popleft()
        self._ready_passed = False


def _bytes_behind(command: ev.Command, reply: ev.Reply) -> int | None:
    """How many raw bytes follow a reply to a client."""
    if isinstance(reply, ev.Loading):
        assert isinstance(command, ev.Load | ev.VecRead)
        return framed_length(command.checksum, reply.length)
    if isinstance(reply, ev.DigestReport):
        assert isinstance(command, ev.GetDigests)
        return None if command.info_only else reply.length
    return None


_NOBODY = ev.Malformed(ErrorCode.GENERIC, closes_if_refused=True)
_REPLIES: dict[type[ev.Request], tuple[type[ev.Reply], ...]] = {
    ev.Allocate: (ev.Allocated,),
    ev.Store: (ev.Stored,),
    ev.Write: (ev.Stored,),
    ev.VecWrite: (ev.Stored,),
    ev.Load: (ev.Loading,),
    ev.VecRead: (ev.Loading,),
    ev.Send: (ev.Stored,),
    ev.Push: (ev.Stored,),
    ev.Pull: (ev.Stored,),
    ev.Deliver: (ev.Stored,),
    ev.RemoteStore: (ev.Stored,),
    ev.Open: (ev.Opened,),
    ev.Probe: (ev.Probed,),
    ev.Increment: (ev.Done,),
    ev.Decrement: (ev.Done,),
    ev.Change: (ev.Done,),
    ev.Truncate: (ev.Done,),
    ev.Rename: (ev.Allocated,),
    ev.Split: (ev.Allocated,),
    ev.Merge: (ev.Done,),
    ev.AliasAllocate: (ev.Allocated,),
    ev.AliasProbe: (ev.AliasProbed,),
    ev.AliasIncrement: (ev.Done,),
    ev.AliasDecrement: (ev.Done,),
    ev.AliasChange: (ev.Done,),
    ev.GetDigests: (ev.DigestReport,),
    ev.ValidateDigests: (ev.BadBlocks,),
    ev.StatusInquire: (ev.StatusReport,),
    ev.StatusChange: (ev.StatusReport,),
    ev.StatusResources: (ev.Resources,),
    ev.StatusVersion: (ev.VersionText,),
}
