"""mail.toml: how mail is rewritten and where it goes. Strict: an unknown word is an error."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ibpfs.depot.address import Address
from ibpfs.errors import UsageError
from ibpfs.mail.delivery import Program, Smarthost
from ibpfs.mail.planning import Rules
from ibpfs.quantities import parse_duration, parse_size

_CHOICES = {"on_error": ("send", "defer"), "signed": ("keep", "wrap"), "security": ("starttls", "tls", "none"),
            "local_links": ("refuse", "send")}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All of it as a person writes it; the names are those of mail.toml and of the options."""

    volume: str = ""  # "": the one that is mounted
    directory: str = ".ibpfs-mail"  # on the mount; what is shared passes through it
    threshold: str = "5M"
    expires: str = "30d"
    gateway: str = ""  # URL that links go through, for receivers with a browser alone
    on_error: str = "send"
    local_links: str = "refuse"  # to depots that this machine alone reaches
    signed: str = "keep"
    sendmail: str = "/usr/sbin/sendmail"
    smarthost: str = ""  # HOST[:PORT]; instead of sendmail
    security: str = "starttls"
    user: str = ""
    password_file: str = ""
    ca_file: str = ""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        parse_size(self.threshold)
        if parse_duration(self.expires) < 60:
            raise UsageError("a link that holds for less than a minute is of no use")
        parts = Path(self.directory).parts
        if not parts or Path(self.directory).is_absolute() or ".." in parts:
            raise UsageError(f"directory is a name on the mount, not {self.directory!r}")

    @property
    def rules(self) -> Rules:
        return Rules(threshold=parse_size(self.threshold), wrap=self.signed == "wrap")

    @property
    def next_hop(self) -> Program | Smarthost:
        if not self.smarthost:
            return Program(self.sendmail)
        host, port = parse_host(self.smarthost, 465 if self.security == "tls" else 587)
        if self.security == "none" and self.user and not Address(host).is_local:
            raise UsageError(f"{host}: a password goes through TLS alone; security is tls or starttls")
        password = _password(Path(self.password_file)) if self.password_file else ""
        return Smarthost(host, port, self.security, self.user, password, self.ca_file or None)

    def over(self, others: Mapping[str, str | None]) -> "Settings":
        """Return these with what the command line says instead."""
        return replace(self, **{name: value for name, value in others.items() if value is not None})


def parse_host(text: str, port: int) -> tuple[str, int]:
    """Return host and port of HOST[:PORT]; IPv6 addresses stand in brackets."""
    host, colon, number = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, number = text, str(port)
    if not host.strip("[]") or not number.isdigit() or not 0 <= int(number) < 65536:
        raise UsageError(f"{text!r} is no HOST:PORT")
    return host.strip("[]"), int(number)


def _password(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise UsageError(f"{path}: others may read it; chmod 600 it")
    return path.read_text(encoding="utf-8").split("\n", 1)[0]


def read_settings(text: str, place: str = "mail.toml") -> Settings:
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{place}: {error}") from None
    known = {one.name for one in fields(Settings)}
    for name, value in found.items():
        if name not in known:
            raise UsageError(f"{place}: knows no {name!r}; there are {', '.join(sorted(known))}")
        if not isinstance(value, str):
            raise UsageError(f"{place}: {name} is to be text in quotes")
    try:
        return Settings(**found)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def load_settings(path: str | None = None) -> Settings:
    """Read the named file, else IBPFS_MAIL_CONFIG, else the user's, else the system's; without any, the defaults."""
    named = path or os.environ.get("IBPFS_MAIL_CONFIG")
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    candidates = [named] if named else [f"{home}/ibpfs/mail.toml", "/etc/ibpfs/mail.toml"]
    for candidate in candidates:
        try:
            return read_settings(Path(candidate).read_text(encoding="utf-8"), candidate)
        except FileNotFoundError:
            if named:
                raise UsageError(f"{candidate}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{candidate}: {getattr(error, 'strerror', error)}") from None
    return Settings()
