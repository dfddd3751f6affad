"""The words that programs call sendmail with. Pure; whatever is not known is passed on and does no harm."""

from dataclasses import dataclass

#: Options with a value, as the sendmails have them; the value may be attached.
_WITH_VALUE = "ABCDFLMNOQRVXbdefhopqr"
#: -o and -d, -q, -e, -b take a value only if it is attached.
_ATTACHED_ONLY = "bdeoqQ"
#: Modes of -b in which no message comes: mailq, newaliases, a daemon, a dialogue and the like.
_DELIVERS = ("m", "")


@dataclass(frozen=True)
class Invocation:
    """What a call of sendmail means. `words` are all of them, as they were."""

    words: tuple[str, ...]
    recipients: tuple[str, ...] = ()
    sender: str | None = None
    reads_recipients: bool = False  # -t
    ignores_dots: bool = False  # -i, -oi
    other_mode: bool = False  # nothing is sent
    name: str = ""  # -F


def parse_words(words: list[str]) -> Invocation:
    """Return what they mean; never refuses any."""
    sender, name, reads, dots, other, place = None, "", False, False, False, 0
    while place < len(words):
        word = words[place]
        if word == "--" or not word.startswith("-") or word == "-":
            place += word == "--"
            break
        place += 1
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in _WITH_VALUE:
                reads, dots = reads or letter == "t", dots or letter == "i"
                other = other or letter == "I"
                continue
            value, letters = letters, ""
            if not value and letter not in _ATTACHED_ONLY and place < len(words):
                value, place = words[place], place + 1
            sender = value if letter in "fr" else sender
            name = value if letter == "F" else name
            dots = dots or (letter == "o" and value.startswith("i"))
            other = other or letter in "qQ" or (letter == "b" and value not in _DELIVERS)
    return Invocation(tuple(words), tuple(words[place:]), sender, reads, dots, other, name)
