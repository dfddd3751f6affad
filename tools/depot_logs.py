"""The log of `ibpfs-depot`: one line a record, logfmt or JSON, to standard error.

A message is words, then fields as ` name=value`; the fields become fields of the line.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime

FORMATS = ("logfmt", "json")
_FIELDS = re.compile(r"((?: [a-z_]+=\S+)*)$")
_PLAIN = re.compile(r"[^\s\"=\x00-\x1f\x7f]+")


def start_logging(kind: str, *, verbose: bool) -> None:
    """May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt() if kind == "logfmt" else JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.INFO, force=True)
    logging.captureWarnings(True)


class Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{name}={_quoted(value)}" for name, value in fields_of(record, self).items())


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record, self), ensure_ascii=False)


def fields_of(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, str]:
    text = record.getMessage()
    fields = _FIELDS.search(text)
    pairs = fields[1].split() if fields else []
    when = datetime.fromtimestamp(record.created, UTC)
    named = {
        "time": when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": text[: fields.start()] if fields else text,
    }
    named |= {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name not in named}
    if record.exc_info:
        named["exception"] = formatter.formatException(record.exc_info)
    return named


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
