"""Server-sent events, and requests that end when their client leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from vila_serve.api.errors import server_stops
from vila_serve.asgi import until_client_leaves

KEEP_ALIVE_SECONDS = 15.0
"""After so long without an event, a comment is sent, so that proxies keep the connection open."""
STALL_SECONDS = 120.0
"""A client that takes nothing for so long is given up."""
CLIENT_LEFT = 499
"""Status in the log and the metrics; nobody receives it."""
DONE = b"data: [DONE]\n\n"
Result = TypeVar("Result")


def event(data: object, name: str | None = None) -> bytes:
    """Return one event as it is sent; `data` is written as JSON."""
    prefix = b"" if name is None else f"event: {name}\n".encode()
    return b"%bdata: %b\n\n" % (prefix, to_json(data))


class EventStream(Response):
    """A streamed response. When its client leaves, or stops reading, `events` is closed.

    If the server stops before the end, an error is the last event.

    Args:
        events: what to send, made by `event`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._last = time.monotonic()
        self._is_sending = False
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = [
            asyncio.create_task(self._send_events(send)),
            asyncio.create_task(until_client_leaves(receive)),
            asyncio.create_task(self._keep_alive(send)),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(work)
            if not self._has_begun:
                raise
            await self._send(send, event(server_stops().body))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await _end(work)
        for task in done:
            task.result()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._has_begun = True
        async for part in self._events:
            await self._send(send, part)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, part: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": part, "more_body": True})
        self._is_sending, self._last = False, time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        """Send comments while there are no events; return once the client has taken nothing for a long time."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            idle = time.monotonic() - self._last
            if self._is_sending:
                if idle > STALL_SECONDS:
                    return
            elif idle >= KEEP_ALIVE_SECONDS:
                await self._send(send, b": keep-alive\n\n")


async def _end(work: Sequence[asyncio.Task[None]]) -> None:
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Return the result of `work`; None, with `work` cancelled, if the client leaves first."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(until_client_leaves(request.receive))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
