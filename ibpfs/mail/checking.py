"""Looking a rewritten message over before it is used: by our own scanner and by Python's parser, side by side.

Whatever was to stay must be there, in its place, field by field and byte by byte.
"""

import email
from email.message import Message

from ibpfs.errors import IbpfsError
from ibpfs.mail.planning import Plan
from ibpfs.mail.rewriting import has_html
from ibpfs.mail.structure import Buffer, Part, scan

#: Larger results are looked at by our own scanner alone.
_FOR_PYTHON = 32 * 1024 * 1024


class RewritingFailed(IbpfsError):
    """The result is not what it should be. A bug: the original is sent."""


def check(data: Buffer, plan: Plan, result: bytes) -> None:
    """RewritingFailed unless `result` is the message with exactly the planned files replaced."""
    new = scan(result)
    if plan.attachments and not plan.attachments[0].boundary:
        kinds = [part.fields.kind for part in new.parts]
        _require(kinds == ["text/plain", "message/external-body"], "the new body is not as it should be")
    else:
        _same(data, plan.root, result, new, {one.part.start: _new_kinds(plan) for one in plan.attachments})
    if len(result) <= _FOR_PYTHON:
        _agrees(result, new, email.message_from_bytes(result))


def _new_kinds(plan: Plan) -> list[str]:
    return ["multipart/alternative" if has_html(plan) else "text/plain", "message/external-body"]


def _same(data: Buffer, old: Part, result: bytes, new: Part, replaced: dict[int, list[str]]) -> None:
    """Walk both structures; `replaced`: by the place where a part was, the kinds of those that took it."""
    _require(data[old.start : old.body] == result[new.start : new.body], "a header has changed")
    if not old.parts:
        _require(data[old.body : old.stop] == result[new.body : new.stop], "a part has changed")
        return
    left = list(new.parts)
    for child in old.parts:
        for kind in replaced.get(child.start, []):
            _require(bool(left) and left.pop(0).fields.kind == kind, "a link is not where it should be")
        if child.start not in replaced:
            _require(bool(left), "a part is missing")
            _same(data, child, result, left.pop(0), replaced)
    _require(not left, "there is a part too many")
    ends = data[old.parts[-1].stop : old.stop], result[new.parts[-1].stop : new.stop]
    begins = data[old.body : old.parts[0].start], result[new.body : new.parts[0].start]
    _require(ends[0] == ends[1] and begins[0] == begins[1], "what is around the parts has changed")


def _agrees(result: bytes, part: Part, message: "Message[str, str]") -> None:
    """Python's parser sees the same parts, with the same bytes in them."""
    if part.parts:
        inner = message.get_payload() if message.is_multipart() else []
        _require(isinstance(inner, list) and len(inner) == len(part.parts), "Python sees other parts")
        for one, other in zip(part.parts, inner, strict=True):
            assert isinstance(other, Message)
            _agrees(result, one, other)
    elif not message.is_multipart():
        alone = email.message_from_bytes(result[part.start : part.stop])
        _require(alone.get_payload(decode=True) == message.get_payload(decode=True), "Python sees another part")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise RewritingFailed(f"the rewritten message was not right: {otherwise}")
