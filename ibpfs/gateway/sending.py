"""Sealed bytes on their way to a browser: they count as its load until it has taken them."""

from collections.abc import Callable

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PIECE = 256 * 1024
#: Seconds for a piece: who takes less than 4 KiB/s would hold our memory for as long as it likes.
PATIENCE = 60.0


class SealedBytes(Response):
    """Bytes from depots. `over` is called once: when they are gone, or the receiver is, or its time."""

    media_type = "application/octet-stream"

    def __init__(self, data: bytes | bytearray, over: Callable[[], None]) -> None:
        super().__init__(headers={"content-length": str(len(data))})
        self._data = data
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with memoryview(self._data) as view:
                for at in range(0, max(1, len(view)), _PIECE):
                    piece, is_last = bytes(view[at : at + _PIECE]), at + _PIECE >= len(view)
                    with trio.fail_after(PATIENCE):
                        await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
        except trio.TooSlowError:
            return  # the server cuts off what is not whole
        finally:
            self._over()
