"""What tests send to: a real SMTP server that may refuse, a sendmail that writes down what it gets, and links."""

import asyncio
import stat
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from ibpfs.errors import VolumeError
from ibpfs.mail.blocks import Shared

from .letters import EXPIRES, GATEWAY, link


@dataclass
class Links:
    """Keeps files in memory; its links are real ones, to nowhere."""

    fails_at: int = 1000
    files: list[tuple[str, bytes]] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def share(self, name: str, size: int, pieces: Iterator[bytes]) -> Shared:
        data = b"".join(pieces)
        with self.lock:
            if len(self.files) >= self.fails_at:
                raise VolumeError("no volume is mounted")
            self.files.append((name, data))
            one = link(len(self.files) - 1)
        assert len(data) == size
        return Shared(one.locator.id, name, size, EXPIRES, one.render(GATEWAY), one.render())

    def revoke(self, ids: Sequence[str]) -> None:
        self.revoked += ids


@dataclass
class Mailbox:
    """aiosmtpd's server and what it took; `answers` are replies to MAIL, RCPT (by address) and DATA that refuse."""

    answers: dict[str, str] = field(default_factory=dict)
    taken: list[tuple[str | None, list[str], bytes]] = field(default_factory=list)
    options: list[list[str]] = field(default_factory=list)
    doors: list[SMTP] = field(default_factory=list)
    is_silent: bool = False  # takes a message, and goes without a word

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        if "DATA" in self.answers:
            return self.answers["DATA"]
        assert isinstance(envelope.content, bytes)
        self.taken.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        self.options.append(list(envelope.mail_options))
        if self.is_silent:
            self.hang_up()
        return "250 taken"

    def hang_up(self) -> None:
        for door in self.doors:
            if door.transport is not None:
                door.transport.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        def door() -> SMTP:
            self.doors.append(SMTP(self, hostname="mailbox", enable_SMTPUTF8=True, loop=loop))
            return self.doors[-1]

        loop = asyncio.get_running_loop()
        server = await loop.create_server(door, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.hang_up()
            await asyncio.sleep(0.01)


def make_sendmail(directory: Path, code: int = 0) -> Path:
    """A program that writes its words and its input beside itself."""
    path = directory / "sendmail"
    words = f'printf "%s\\n" "$@" >"{directory}/words"'
    path.write_text(f'#!/bin/sh\n{words}\n[ {code} = 0 ] && cat >"{directory}/message"\nexit {code}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
