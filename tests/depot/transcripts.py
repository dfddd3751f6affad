"""Reads the shortened transcripts in `captures/*.txt`: whole commands again, payloads as zeros of the right length."""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from ibpfs.depot.wire import events as ev
from ibpfs.depot.wire.commands import parse_command

_CONNECTION = re.compile(r"^=== conn \d+ +\d+ -> (\d+)$", re.MULTILINE)
_PIECE = re.compile(r" *[0-9.]+ (C>|<S) +(\d+) (b['\"].*)$")
_COMMAND = re.compile(rb"[01] +\d+ ")
_VECTOR = re.compile(rb"([01] (?:33|35) \S+ \S+) (\d+) 0 (\d+) ")
_TOTAL = re.compile(rb"1 (\d+) ")
GAP = b"\xff...\xff"


@dataclass
class Said:
    """One request and its data; `answers`: the lines of the recording, None where it was shortened."""

    request: ev.Request
    line: bytes
    length: int
    answers: list[bytes] | None
    burst: bool = False  # others like it followed, which are not shown


@dataclass
class Dialogue:
    port: int
    said: list[Said] = field(default_factory=list)


def read(path: Path) -> list[Dialogue]:
    parts = _CONNECTION.split(path.read_text(encoding="latin-1"))
    return [_dialogue(int(port), body) for port, body in zip(parts[1::2], parts[2::2], strict=True)]


def _dialogue(port: int, body: str) -> Dialogue:
    shown = [found for line in body.splitlines() if (found := _PIECE.match(line))]
    pieces = [(found[1], int(found[2]), _bytes(found[3], int(found[2]))) for found in shown]
    dialogue, left = Dialogue(port), 0
    for at, (who, size, text) in enumerate(pieces):
        if who != "C>":
            continue
        total = next((int(found[1]) for p in pieces[at + 1 :] if (found := _TOTAL.match(p[2])) and p[0] == "<S"), 0)
        said, left = _requests(text, size, left, total)
        if len(said) == 1:  # alone, so that what follows is its answer
            said[0].answers = _answers(pieces[at + 1 :])
        else:  # only of new capabilities one can tell whose answer they are
            told = [p[2] for p in pieces[at + 1 :] if p[0] == "<S" and p[2].startswith(b"1 ibp://")]
            for one, answer in zip([one for one in said if isinstance(one.request, ev.Allocate)], told, strict=False):
                one.answers = [answer]
        dialogue.said += said
    return dialogue


def _bytes(text: str, size: int) -> bytes:
    if "..." not in text or (len(text) < 4 * size + 4 and len(_unescaped(text)) == size):
        return _unescaped(text)
    head, _, tail = text.partition("...")
    quote = text[1]
    halves = [_unescaped(f"b{quote}{head[2:]}{quote}"), _unescaped(f"b{quote}{tail[:-1]}{quote}")]
    return GAP.join(halves)


def _unescaped(text: str) -> bytes:
    for cut in range(4):  # an escape may have been cut in two
        try:
            value = ast.literal_eval(f"{text[: len(text) - 1 - cut]}{text[-1]}")
        except SyntaxError:
            continue
        return value if isinstance(value, bytes) else b""
    return b""


def _requests(text: bytes, size: int, left: int, total: int) -> tuple[list[Said], int]:
    """What begins in one piece, and how many bytes of the last one's data are still to come."""
    if _COMMAND.match(text):  # the recorder missed some of the data
        left = 0
    at, said = min(left, size), []
    gap = text.find(GAP)
    if at:  # in front of the gap only as much as is shown; behind it, counted from the end
        left -= at
        if left or at == size:
            return said, left
        text, size, at = text[len(text) - (size - at) :] if size - at < len(text) - gap else b"", size - at, 0
        gap = text.find(GAP)
    shown = gap if gap >= 0 else len(text)
    while at < shown:
        end = text.find(b"\n", at, shown)
        line = text[at:end] if end >= 0 else _restored(text[at:], total)
        if line is None or not _COMMAND.match(line):
            return said, 0
        request = parse_command(line)
        length = int(getattr(request, "wire_length", 0))
        said.append(Said(request, line, length, None))
        at = end + 1 + length if end >= 0 else size
    if gap >= 0 and at < size and said and not said[-1].length:  # one line after another: the last ones are shown
        lines = [line for line in text[gap:].split(b"\n")[1:] if _COMMAND.match(line)]
        said += [Said(parse_command(line), line, 0, None) for line in lines]
    burst = gap >= 0 and at < size and bool(said) and bool(said[-1].length)
    if burst:
        said[-1].burst = True
    return said, 0 if burst else max(0, at - size)


def _restored(text: bytes, total: int) -> bytes | None:
    """A line with a gap in it, where one can tell what was there: evenly spaced vectors, and keys."""
    line = text.partition(b"\n")[0] if text.find(b"\n", text.find(GAP)) >= 0 else text.rstrip()
    if (found := _VECTOR.match(line)) is not None:
        number, step = int(found[2]), int(found[3])
        last = line.rsplit(b" ", 3)
        if not last[3].isdigit():  # its data follow
            last = [b"", b"%d" % ((number - 1) * step), b"%d" % (total - (number - 1) * step), b"60"]
        pairs = [f"{n * step} {step}".encode() for n in range(number - 1)] + [b" ".join(last[1:3])]
        return b"%b %d %b %b" % (found[1], number, b" ".join(pairs), last[3])
    return line if line.count(b" ") > 3 and b"IBP-" in line else None


def _answers(pieces: list[tuple[str, int, bytes]]) -> list[bytes] | None:
    lines = []
    for who, _, text in pieces:
        if who == "<S":
            line = text.partition(b"\n")[0]
            if GAP not in line or b"ibp://" in line:
                lines.append(line)
        elif not lines or _COMMAND.match(text):
            break
    return lines or None
