"""Bytes that are counted until the browser has them."""

from collections.abc import MutableMapping
from typing import Any

import trio
import trio.testing

from ibpfs.gateway.sending import PATIENCE, SealedBytes


async def nothing() -> MutableMapping[str, Any]:
    await trio.sleep_forever()


def test_the_bytes_and_then_it_is_over() -> None:
    sent: list[MutableMapping[str, Any]] = []
    over: list[int] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        assert not over
        sent.append(message)

    data = bytes(range(256)) * 3000
    trio.run(SealedBytes(data, lambda: over.append(1)), {"type": "http"}, nothing, send)
    assert b"".join(message.get("body", b"") for message in sent) == data
    assert [message.get("more_body") for message in sent[1:]] == [True, True, False]
    assert over == [1]


def test_who_does_not_take_them_is_left() -> None:
    over: list[float] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await trio.sleep_forever()

    clock = trio.testing.MockClock(autojump_threshold=0)
    response = SealedBytes(b"x", lambda: over.append(trio.current_time()))

    async def main() -> float:
        began = trio.current_time()
        await response({"type": "http"}, nothing, send)
        return over[0] - began

    assert trio.run(main, clock=clock) >= PATIENCE
    assert len(over) == 1
