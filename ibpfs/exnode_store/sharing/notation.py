"""Contents of a share as JSON, and back. Pure."""

import json
from typing import Any, Final

from ibpfs.depot.address import Address
from ibpfs.depot.capability import BadCapability
from ibpfs.errors import UsageError
from ibpfs.exnode_store.ledger_rows import pack_key, unpack_key
from ibpfs.exnode_store.sealing import AES_256_GCM, SliceForm
from ibpfs.exnode_store.sharing.contents import (
    MAX_COPIES,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_PARTS,
    MAX_SLICES,
    BadContent,
    Content,
    Copy,
    Entry,
    Run,
    Sender,
    SharedPart,
    SharedSlice,
    depots_of,
)
from ibpfs.exnode_store.sharing.links import decode, encode
from ibpfs.exnode_store.sharing.record_log import FORMAT_NAME, MAX_DEPOTS, remote

#: Of what has symbolic links: who does not know them is to refuse it, not to leave them out.
WITH_LINKS: Final = "ibpfs-share/2"
#: Brackets and commas are counted before JSON is read: each may become an object of dozens of bytes.
_MOST_BRACKETS: Final = 4_000_000
_MOST_COMMAS: Final = 10_000_000
_BILLION: Final = 1_000_000_000


def to_json(content: Content) -> bytes:
    """Raises BadContent."""
    content.check()
    depots = {address: number for number, address in enumerate(depots_of(content.runs))}
    row = {
        "format": WITH_LINKS if content.links else FORMAT_NAME,
        "name": content.name,
        "type": content.entries[0].kind,
        "size": content.size,
        "note": content.note,
        "created": content.created,
        "expires": content.expires,
        "sender": {"key": encode(content.sender.key), "signature": encode(content.sender.signature)},
        "depots": [str(address) for address in depots],
        "runs": [
            [run.length, [[depots[one.depot], pack_key(one.read), one.base] for one in run.copies]]
            for run in content.runs
        ],
        "slices": [_slice_row(one) for one in content.slices],
        "entries": [_entry_row(one) for one in content.entries],
    }
    return json.dumps(row, separators=(",", ":")).encode("ascii")


def from_json(data: bytes) -> Content:
    """Raises BadContent."""
    if data.count(b"[") + data.count(b"{") > _MOST_BRACKETS or data.count(b",") > _MOST_COMMAS:
        raise BadContent("has more parts than any may have")
    try:
        row: Any = json.loads(data)
        if row["format"] not in (FORMAT_NAME, WITH_LINKS):
            raise BadContent("is of a newer ibpfs")
        content = _content(row)
        if bool(content.links) != (row["format"] == WITH_LINKS):
            raise BadContent("makes no sense")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, UsageError, BadCapability) as error:
        if isinstance(error, BadContent):
            raise
        raise BadContent("makes no sense") from None
    content.check()
    return content


def _content(row: Any) -> Content:
    depots = [remote(_text(one)) for one in _rows(row["depots"], MAX_DEPOTS)]
    return Content(
        name=_text(row["name"]),
        note=_text(row["note"]),
        created=_number(row["created"]),
        expires=_number(row["expires"]),
        sender=Sender(_bytes(row["sender"]["key"], 32), _bytes(row["sender"]["signature"], 64)),
        runs=tuple(_run(one, depots) for one in _rows(row["runs"], MAX_SLICES)),
        slices=tuple(_slice(one) for one in _rows(row["slices"], MAX_SLICES)),
        entries=tuple(_entry(one) for one in _rows(row["entries"], MAX_ENTRIES)),
    )


def _run(row: Any, depots: list[Address]) -> Run:
    length, copies = row
    return Run(_number(length), tuple(_copy(one, depots) for one in _rows(copies, MAX_COPIES)))


def _copy(row: Any, depots: list[Address]) -> Copy:
    depot, read, base = row
    if not 0 <= _number(depot) < len(depots):
        raise BadContent("has a copy on no depot")
    return Copy(depots[depot], unpack_key(_text(read)), _number(base))


def _slice_row(one: SharedSlice) -> list[Any]:
    form = one.form
    if form.function != AES_256_GCM:
        raise BadContent("has a slice that browsers cannot open")
    return [
        one.run, one.offset, form.length, form.frame_size, form.epoch, encode(form.slice_id), encode(form.origin),
        encode(one.key),
    ]  # fmt: skip


def _slice(row: Any) -> SharedSlice:
    run, offset, length, frame_size, epoch, slice_id, origin, key = row
    numbers = _number(epoch), AES_256_GCM, _number(frame_size), _number(length)
    form = SliceForm(_bytes(slice_id, 16), _bytes(origin, 16), *numbers)
    return SharedSlice(form, _number(run), _number(offset), _bytes(key, 32))


def _entry_row(one: Entry) -> dict[str, Any]:
    seconds, nanoseconds = divmod(one.mtime_ns, _BILLION)
    row: dict[str, Any] = {
        "path": list(one.path), "type": one.kind, "size": one.size, "mtime": seconds, "mtime_ns": nanoseconds,
        "mode": one.mode,
    }  # fmt: skip
    if one.sha256 is not None:
        row["sha256"] = one.sha256.hex()
    if one.target is not None:
        row["target"] = one.target
    if one.parts:
        row["parts"] = [[part.start, part.stop, part.slice, part.offset] for part in one.parts]
    return row


def _entry(row: Any) -> Entry:
    sha256, target = row.get("sha256"), row.get("target")
    parts = [SharedPart(*map(_number, part)) for part in _rows(row.get("parts", []), MAX_PARTS)]
    return Entry(
        tuple(_text(name) for name in _rows(row["path"], MAX_DEPTH)),
        _text(row["type"]),
        _number(row["size"]),
        _number(row["mtime"]) * _BILLION + _number(row["mtime_ns"]),
        _number(row["mode"]),
        None if sha256 is None else bytes.fromhex(_text(sha256)),
        tuple(parts),
        None if target is None else _text(target),
    )


def _rows(value: Any, most: int) -> list[Any]:
    """Before anything is made of them."""
    if not isinstance(value, list):
        raise BadContent("makes no sense")
    if len(value) > most:
        raise BadContent("has more parts than any may have")
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise BadContent("makes no sense")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadContent("makes no sense")
    return value


def _bytes(value: Any, length: int) -> bytes:
    data = decode(_text(value))
    if len(data) != length:
        raise BadContent("makes no sense")
    return data
