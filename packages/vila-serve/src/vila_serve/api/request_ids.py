"""The outermost layer: every request gets an id, every response names it, and no exception gets past."""

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vila_serve.api.errors import internal_error, server_stops
from vila_serve.request_id import choose_request_id, request_id

log = logging.getLogger("vila_serve.access")

Observer = Callable[[str, str, int, float], None]
"""Called after a request with its method, its path, the status (499: the client left) and the seconds it took."""


class RequestIds:
    """Middleware that gives each request an id and answers with status 500 where the application fails."""

    def __init__(self, app: ASGIApp, observe: Observer):
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_id.set(choose_request_id(Headers(scope=scope).get("x-request-id")))
        begin, status = time.perf_counter(), 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = str(request_id.get())
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server stops, and the time for its running requests is over
            if status != 499:
                raise
            await server_stops().response(scope, receive, send_with_id)
        except Exception:  # whatever it is, the client gets an answer
            log.exception("A request failed.")
            if status != 499:
                raise  # the response has begun, so that closing the connection is all that is left
            await internal_error().response(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - begin
            data = {"method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
            log.info("%s %s %d %.3f s", *data.values(), extra={"data": data})
            self._observe(scope["method"], scope["path"], status, seconds)
            request_id.reset(token)
