"""Messages of the corpus, and links as a volume would make them."""

import email
from email.message import Message
from pathlib import Path

from ibpfs.depot.address import Address
from ibpfs.depot.capability import Key
from ibpfs.exnode_store.sharing.links import Fragment, Link, Locator, Place
from ibpfs.mail.blocks import Shared
from ibpfs.mail.checking import check
from ibpfs.mail.planning import Attachment, Plan, Rules, make_plan
from ibpfs.mail.rewriting import rewrite
from ibpfs.mail.structure import scan

CORPUS = Path(__file__).parent / "corpus"
EXPIRES = 1_797_777_780
GATEWAY = "https://gate.example"
#: Above every text of the corpus and below every file.
RULES = Rules(threshold=2000)


def link(number: int) -> Link:
    place = Place(Address("depot.example", 6714), Key(f"key{number:05}" * 3, "4"))
    return Link(Locator(bytes([number]) * 10, EXPIRES, (place,)), Fragment(secret=bytes([number]) * 32))


def shared(attachment: Attachment, number: int) -> Shared:
    one = link(number)
    return Shared(one.locator.id, attachment.name, attachment.size, EXPIRES, one.render(GATEWAY), one.render())


def rewritten(data: bytes, rules: Rules = RULES) -> tuple[bytes, Plan]:
    """The whole way; the message as it was where nothing is to become a link."""
    plan = make_plan(data, scan(data), rules)
    if not plan.attachments:
        return data, plan
    result = rewrite(data, plan, [shared(one, number) for number, one in enumerate(plan.attachments)])
    check(data, plan, result)
    return result, plan


def leaves(data: bytes) -> "list[Message[str, str]]":
    """As Python's parser has them; what is inside of a forwarded message is not looked at."""
    return _leaves(email.message_from_bytes(data))


def _leaves(message: "Message[str, str]") -> "list[Message[str, str]]":
    inner = message.get_payload()
    if message.get_content_maintype() == "message" or not isinstance(inner, list):
        return [message]
    return [leaf for one in inner if isinstance(one, Message) for leaf in _leaves(one)]
