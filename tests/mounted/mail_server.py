"""A Postfix of the test's own: its configuration, queue, log and mailboxes are below one directory, its ports on
loopback. Nothing of the system's is touched.
"""

import os
import pwd
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .running import BIN, HEARD, run, until

#: Who delivers into mailboxes; Postfix refuses to do that as root.
_OWNER = "mail"
#: Seconds; Postfix's own clock for that is not made for so short times.
_RETRY = 3.0
PEOPLE = ("ada", "ben", "carl")

_MAIN = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log
maillog_file_prefixes = {base}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.example.net
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
smtpd_relay_restrictions = permit_mynetworks, reject
virtual_mailbox_domains = example.net
virtual_mailbox_base = {base}/mail
virtual_mailbox_maps = regexp:{base}/etc/mailboxes
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
message_size_limit = 1073741824
default_transport = error:no mail leaves the tests
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
{filter}
"""

_MASTER = """\
{smtp}    inet  n - n - - smtpd
{back}    inet  n - n - 10 smtpd
  -o content_filter=
  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
ibpfs     unix  - - n - 10 smtp
  -o smtp_data_done_timeout=7200s
  -o smtp_send_xforward_command=no
pickup    unix  n - n 1 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
proxymap  unix  - - n - - proxymap
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
virtual   unix  - n n - - virtual
postlog   unix-dgram n - n - 1 postlogd
"""


class MailServer:
    """Delivers mail for example.net into maildirs, through a content filter if there is one."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.smtp, self.back = _free_port(), _free_port()
        for name in ("etc", "queue", "data", "mail"):
            (base / name).mkdir()
        shutil.chown(base / "data", "postfix")
        shutil.chown(base / "mail", _OWNER)
        (base / "etc" / "mailboxes").write_text("".join(f"/^{name}@/ {name}/\n" for name in PEOPLE))

    @contextmanager
    def running(self, *, filtered: int | None = None) -> Iterator["MailServer"]:
        """Serve while in the block; all mail goes through the content filter on this port."""
        owner = pwd.getpwnam(_OWNER)
        content_filter = "" if filtered is None else f"content_filter = ibpfs:[127.0.0.1]:{filtered}"
        main = _MAIN.format(base=self.base, uid=owner.pw_uid, gid=owner.pw_gid, filter=content_filter)
        (self.base / "etc" / "main.cf").write_text(main)
        master = _MASTER.format(smtp=f"127.0.0.1:{self.smtp}", back=f"127.0.0.1:{self.back}")
        (self.base / "etc" / "master.cf").write_text(master)
        self._postfix("start")
        try:
            yield self
        finally:
            self._postfix("stop")
            HEARD.errors.append(self.log())

    def _postfix(self, verb: str) -> None:
        run("postfix", "-c", self.base / "etc", verb, env=_SBIN, timeout=60)

    def log(self) -> str:
        path = self.base / "log"
        return path.read_text() if path.exists() else ""

    def mailbox(self, name: str) -> list[Path]:
        return sorted((self.base / "mail" / name / "new").glob("*"))

    def arrived(self, name: str, count: int = 1, seconds: float = 120) -> list[bytes]:
        """Wait for messages; returns them. What was deferred is tried again every few seconds."""
        latest = time.monotonic()

        def there() -> bool:
            nonlocal latest
            if time.monotonic() > latest + _RETRY:
                latest = time.monotonic()
                run("postqueue", "-c", self.base / "etc", "-f", env=_SBIN)
            return len(self.mailbox(name)) >= count

        try:
            until(there, seconds)
        except AssertionError:
            told = [path.read_text() for path in self.base.parent.glob("*.log")]
            raise AssertionError(f"{name} has no {count} messages: {self.log()[-3000:]}{told}") from None
        return [path.read_bytes() for path in self.mailbox(name)]

    def queued(self) -> str:
        return run("postqueue", "-c", self.base / "etc", "-p", env=_SBIN).stdout

    @property
    def sendmail(self) -> Path:
        """A sendmail that belongs to this server."""
        path = self.base / "etc" / "sendmail"
        path.write_text(f'#!/bin/sh\nexec /usr/sbin/sendmail -C {self.base}/etc "$@"\n')
        path.chmod(0o755)
        return path


_SBIN = {"PATH": f"{BIN}:/usr/sbin:/sbin:{os.environ['PATH']}"}


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port: int = door.getsockname()[1]
        return port
