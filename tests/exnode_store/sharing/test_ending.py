"""What is told of what depots have ended, and have not."""

import time
from dataclasses import replace

from ibpfs.exnode_store.sharing.ending import intended, rows_of
from ibpfs.exnode_store.sharing.share_state import ACTIVE, ENDING, RECORD

from .test_lease_rows import EXPIRES, alias, owned, state


def test_one_sentence_of_what_is_to_come() -> None:
    """It promises nothing that a depot has not been asked for."""
    said = intended(state(ACTIVE, alias(1, 500.0), alias(2, 500.0), owned(3, 500.0), owned(4, 500.0, RECORD)))
    assert said == (
        "revoking it closes windows on the volume's allocations at ibp://a:1, deletes private copies of 100 B at"
        " ibp://a:1 and deletes its record at ibp://a:1; who has fetched it keeps what was fetched"
    )
    assert "windows" not in intended(state(ACTIVE, owned(3, 500.0)))
    assert "record" not in intended(state(ACTIVE, owned(3, 500.0)))


def test_one_sentence_of_what_is_left() -> None:
    what = "a mount deletes its record at ibp://a:1, as soon as it can"
    ending = state(ENDING, owned(4, 500.0, RECORD))
    assert intended(ending) == f"it has expired, and has not yet everywhere: {what}"
    ending.content = replace(ending.content, expires=int(time.time()) + 100)
    assert intended(ending) == f"it was revoked, and is not yet everywhere: {what}"


def test_rows_by_depot_kind_and_reason() -> None:
    things = [
        (alias(1, 500.0), "no"),
        (alias(2, 700.0), "no"),
        (alias(3, 2.0 * EXPIRES), "busy"),
        (owned(4, None), "no"),
    ]
    rows = rows_of(things, EXPIRES)
    assert [(row["what"], row["why"], row["count"], row["bytes"], row["until"]) for row in rows] == [
        ("window", "no", 2, 200, 700), ("window", "busy", 1, 100, EXPIRES), ("copy", "no", 1, 100, EXPIRES)
    ]  # fmt: skip
    assert {row["depot"] for row in rows} == {"ibp://a:1"}
