"""HTTP as uvicorn reads it, with OpenAI's error object for requests that are not HTTP, and limits on slow clients."""

import asyncio
import json
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vila_serve.api.errors import ApiError
from vila_serve.request_id import choose_request_id

log = logging.getLogger(__name__)

HEAD_SECONDS = 30.0
"""How long the head of a request may take to arrive, and the rest of a body after the response."""
STUCK_SECONDS = 300.0
"""How long a client may leave a full buffer of a response unread."""


class HttpProtocol(H11Protocol):
    """One connection. Requests that are not HTTP never reach the application, so its layers cannot answer them."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.conn = _StrictConnection(self.config.h11_max_incomplete_event_size or 0)
        self._slow_request: asyncio.TimerHandle | None = None
        self._slow_response: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._limit_waiting()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._limit_waiting()

    def pause_writing(self) -> None:
        """Wait until the client has read what was sent."""
        super().pause_writing()
        self._slow_response = self._abort_in(STUCK_SECONDS, "its client does not read the response")

    def resume_writing(self) -> None:
        """Send more."""
        self._slow_response = _cancel(self._slow_response)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection."""
        self._slow_request, self._slow_response = _cancel(self._slow_request), _cancel(self._slow_response)
        super().connection_lost(exc)

    def _limit_waiting(self) -> None:
        """Close the connection in a while, unless the application answers a request now. It limits slow bodies itself.

        A client that has sent nothing since the last response is not waited for here: uvicorn limits that.
        """
        is_answering = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]
        if is_answering:
            self._slow_request = _cancel(self._slow_request)
        elif self._slow_request is None:
            self._slow_request = self._abort_in(HEAD_SECONDS, "its client sends too slowly")

    def _abort_in(self, seconds: float, reason: str) -> asyncio.TimerHandle:
        def abort() -> None:
            log.info("Closed a connection: %s.", reason)
            self.transport.abort()

        return self.loop.call_later(seconds, abort)

    def send_400_response(self, msg: str) -> None:
        """Refuse a request and close the connection."""
        number = choose_request_id(None)
        log.info("Refused a request: %s", msg, extra={"data": {"id": number}})
        if self.conn.our_state is h11.SEND_RESPONSE or self.conn.our_state is h11.IDLE:
            self.transport.write(self._refusal(number))
        self.transport.close()

    def _refusal(self, number: str) -> bytes:
        error = ApiError(400, "The request is not valid HTTP, or its headers are too large.", code="invalid_http")
        body = json.dumps(error.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", number.encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        events = (response, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self.conn.send(event) or b"" for event in events)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _StrictConnection(h11.Connection):
    """Refuses large heads, and requests that say in two ways where they end: a proxy may see another end than h11 does.

    Source: RFC 9112, section 6.1.

    Args:
        max_head_bytes: of a request. h11 itself limits a head only if it arrives in several pieces.
    """

    def __init__(self, max_head_bytes: int):
        super().__init__(h11.SERVER, max_head_bytes)
        self._max_head_bytes = max_head_bytes

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > self._max_head_bytes:
                raise h11.RemoteProtocolError("a head that is too large")
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        return event
