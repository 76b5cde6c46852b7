"""The front: an ASGI application that reads requests, gives them to replicas, and sends on what they answer."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing, suppress
from typing import Any, Protocol

from vila_serve.replicas.affinity import affinity_key
from vila_serve.replicas.messages import HttpRequest, ResponseStart

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

UNAVAILABLE = "The replica that answered this request stopped. Try again."
FULL = "Too many requests wait already. Try again later."
TOO_LARGE = "The request body has more than {limit:,} bytes, which is the limit."


class ReplicaDiedError(Exception):
    """A replica stopped before it had answered."""


class ReplicasFullError(Exception):
    """As many requests wait as may wait."""


class Replicas(Protocol):
    """The replicas, as the front sees them."""

    def answer(self, request: HttpRequest) -> AsyncIterator[ResponseStart | bytes]:
        """Yield the start of a response, then its body. Raises `ReplicaDiedError` and `ReplicasFullError`."""
        ...


class Front:
    """Gives each request to a replica.

    A request whose replica dies is given to another one, unless a part of the answer has been sent: a stream then ends
    with an error event. Answers that are not streams are sent when they are complete.

    Args:
        replicas: who answers.
        max_body_bytes: longer requests are refused with status 413.
        attempts: how many replicas may die under one request.
    """

    def __init__(self, replicas: Replicas, *, max_body_bytes: int, attempts: int = 3):
        self._replicas = replicas
        self._max_body_bytes = max_body_bytes
        self._attempts = attempts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        body = await _read_body(receive, self._max_body_bytes)
        if body is None:
            await _send_error(send, 413, TOO_LARGE.format(limit=self._max_body_bytes), "invalid_request_error")
            return
        request = HttpRequest(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body=body,
            client=tuple(scope["client"]) if scope.get("client") else None,
            affinity=affinity_key(body),
        )
        await self._answer_while_connected(request, receive, send)

    async def _answer_while_connected(self, request: HttpRequest, receive: Receive, send: Send) -> None:
        """Answer, and stop if the client goes away."""
        answer = asyncio.create_task(self._answer(request, send))
        gone = asyncio.create_task(_disconnection(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answer, gone):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
        if not answer.cancelled():
            answer.result()

    async def _answer(self, request: HttpRequest, send: Send) -> None:
        for attempt in range(self._attempts):
            response = Response(send)
            try:
                async with aclosing(self._replicas.answer(request)) as parts:
                    async for part in parts:
                        await response.add(part)
                await response.end()
                return
            except ReplicasFullError:
                await _send_error(send, 429, FULL, "rate_limit_error", {b"retry-after": b"5"})
                return
            except ReplicaDiedError:
                log.warning("A replica died while it answered %s %s.", request.method, request.path)
                if response.is_streaming:
                    await response.break_off()
                    return
            await asyncio.sleep(0.1 * attempt)
        await _send_error(send, 503, UNAVAILABLE, "server_error", {b"retry-after": b"5"})


class Response:
    """Sends on a response: a stream of events part by part, anything else when it is complete."""

    def __init__(self, send: Send):
        self._send = send
        self._start: ResponseStart | None = None
        self._body: list[bytes] = []
        self.is_streaming = False

    async def add(self, part: ResponseStart | bytes) -> None:
        """Take the next part from a replica."""
        if isinstance(part, bytes):
            if self.is_streaming:
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            else:
                self._body.append(part)
            return
        self._start = part
        if dict(part.headers).get(b"content-type", b"").startswith(b"text/event-stream"):
            await self._send_start()
            self.is_streaming = True

    async def end(self) -> None:
        """Send what has not been sent."""
        if not self.is_streaming:
            await self._send_start()
        await self._send({"type": "http.response.body", "body": b"".join(self._body), "more_body": False})

    async def break_off(self) -> None:
        """End a stream whose replica died with an error event."""
        event = b"data: " + json.dumps(_error(UNAVAILABLE, "server_error")).encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def _send_start(self) -> None:
        if self._start is None:
            raise RuntimeError("a replica answered without a status")
        headers = [*self._start.headers]
        await self._send({"type": "http.response.start", "status": self._start.status, "headers": headers})


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """Return the body, or None if it is longer than `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnection(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    """Agree to everything: the replicas have been started before."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send_error(send: Send, status: int, text: str, kind: str, headers: dict[bytes, bytes] | None = None) -> None:
    body = json.dumps(_error(text, kind)).encode()
    fields = {b"content-type": b"application/json", b"content-length": str(len(body)).encode(), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": list(fields.items())})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _error(text: str, kind: str) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}
