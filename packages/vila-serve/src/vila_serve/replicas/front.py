"""The front: an ASGI application that gives requests to replicas, and sends on what they answer."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Protocol

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vila_serve.affinity import affinity_key
from vila_serve.api.admission import Admission
from vila_serve.api.app import ANSWER_PATHS
from vila_serve.api.bodies import with_body
from vila_serve.api.errors import SERVER, ApiError, busy
from vila_serve.api.layers import layers
from vila_serve.api.request_ids import RequestIds
from vila_serve.asgi import until_client_leaves
from vila_serve.replicas.messages import HttpRequest, ResponseStart
from vila_serve.replicas.metrics import FrontMetrics, merge
from vila_serve.request_id import request_id
from vila_serve.settings import ServeSettings

log = logging.getLogger(__name__)

RETRY_SECONDS = 5
"""After which a client may find a replica again."""
STATUS_SECONDS = 10.0
"""How long a route that only reads waits for a replica."""


class ReplicaDiedError(Exception):
    """A replica stopped before it had answered."""


class ReplicasFullError(Exception):
    """As many requests wait as may wait."""


class Replicas(Protocol):
    """The replicas, as the front sees them."""

    def answer(self, request: HttpRequest) -> AsyncIterator[ResponseStart | bytes]:
        """Yield the start of a response, then its body. Raises `ReplicaDiedError` and `ReplicasFullError`."""
        ...

    async def metrics(self) -> Mapping[str, str]:
        """Return the text at /metrics of each replica that answers, by its name."""
        ...


def create_front(
    replicas: Replicas, settings: ServeSettings, add_page: Callable[[ASGIApp], ASGIApp] | None = None
) -> ASGIApp:
    """Return the front with the same layers as a single server: request ids, the key, limits on bodies and requests.

    `add_page` puts the chat page before what it gets; None for no page.
    """
    metrics = FrontMetrics()
    most = settings.replicas * (settings.max_batch + settings.max_queue)
    front: ASGIApp = Front(replicas, metrics)
    front = front if add_page is None else add_page(front)
    for layer in layers(settings, Admission(most, settings.max_buffered_bytes), ANSWER_PATHS):
        front = layer.cls(front, *layer.args, **layer.kwargs)
    return RequestIds(front, metrics.request_ended)


class Front:
    """Gives each request to a replica.

    A request whose replica dies is given to another one, unless a part of the answer has been sent: a stream then ends
    with an error event. Answers that are not streams are sent when they are complete.

    Args:
        replicas: who answers.
        metrics: of the front.
        attempts: how many replicas may die under one request.
    """

    def __init__(self, replicas: Replicas, metrics: FrontMetrics, *, attempts: int = 3):
        self._replicas = replicas
        self._metrics = metrics
        self._attempts = attempts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["path"] == "/metrics":
            text = self._metrics.render() + merge(await self._replicas.metrics())
            await Response(text, headers={"content-type": "text/plain"})(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give a request to a replica. Bodies of routes that take none are not read."""
        is_question = scope["path"] in ANSWER_PATHS and scope["method"] == "POST"
        body = (await receive())["body"] if is_question else b""  # `RequestBodies` gives it in one piece
        own_id = (b"x-request-id", str(request_id.get()).encode())
        headers = [(bytes(k), bytes(v)) for k, v in scope["headers"] if k not in (b"x-request-id", b"content-length")]
        request = HttpRequest(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"],
            headers=(*headers, own_id, (b"content-length", str(len(body)).encode())),
            body=body,
            client=tuple(scope["client"]) if scope.get("client") else None,
            affinity=await with_body(scope, affinity_key) if is_question else "",
        )

        async def refuse(error: ApiError) -> None:
            await error.response(scope, receive, send)

        answer = asyncio.create_task(self._answer(request, send, refuse))
        gone = asyncio.create_task(until_client_leaves(receive))
        timeout = None if is_question else STATUS_SECONDS
        try:
            await asyncio.wait({answer, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_late = not answer.done() and not gone.done()
            for task in (answer, gone):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        if is_late:
            await refuse(ApiError(503, "No replica answers now.", kind=SERVER))

    async def _answer(self, request: HttpRequest, send: Send, refuse: Callable[[ApiError], Awaitable[None]]) -> None:
        for attempt in range(self._attempts):
            response = Relay(send)
            try:
                async with aclosing(self._replicas.answer(request)) as parts:  # pyright: ignore[reportArgumentType]
                    async for part in parts:
                        await response.add(part)
                await response.end()
                return
            except ReplicasFullError:
                await refuse(busy(RETRY_SECONDS))
                return
            except ReplicaDiedError:
                log.warning("A replica died while it answered %s %s.", request.method, request.path)
                if response.is_streaming:
                    await response.break_off()
                    return
            await asyncio.sleep(0.1 * attempt)
        await refuse(_stopped())


class Relay:
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
        event = b"data: " + json.dumps(_stopped().body).encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def _send_start(self) -> None:
        if self._start is None:
            raise ReplicaDiedError
        headers = [*self._start.headers]
        await self._send({"type": "http.response.start", "status": self._start.status, "headers": headers})


def _stopped() -> ApiError:
    message = "The replica that answered this request stopped. Try again."
    return ApiError(503, message, kind=SERVER, headers={"retry-after": str(RETRY_SECONDS)})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Agree to everything: the replicas have been started before."""
    while True:
        message: Message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
