"""Reads the body of a request within limits on requests, bytes, time and nesting, before anything else sees it."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vila_core.errors import printable
from vila_serve.api.admission import Admission
from vila_serve.api.errors import ApiError, busy
from vila_serve.asgi import replay

MAX_VALUES = 1_000_000
"""Limit on the commas and brackets in a body, before it is parsed. A value takes about 60 bytes once it is parsed, and
as little as 2 before."""
MAX_NODES, MAX_FIELDS = 100_000, 10_000
"""Limits on the values in a parsed body and on the fields of one object. Checking them against the schema takes
microseconds each, and no other request is served meanwhile. A history of 10,000 messages has up to 60,000 values."""
THREAD_BYTES = 1_000_000
"""Bodies from this size on are parsed, and read otherwise, in a thread."""
DRAIN_SECONDS = 2.0
"""How long the rest of a refused body is read, so that the client sees the response and no broken connection."""
_JSON = "vila.json"
_SIZE = "vila.body_bytes"
Result = TypeVar("Result")


class _ClientLeftError(Exception):
    """The client closed the connection before its request was complete."""


class _RefusedError(Exception):
    """The body cannot be accepted; `error` says why."""

    def __init__(self, error: ApiError):
        self.error = error


class RequestBodies:
    """Middleware that reads and parses the JSON bodies of some routes.

    Args:
        app: gets the body in one piece, and parsed in the scope.
        paths: which routes; their requests are counted by `admission` until their response has been sent.
        admission: how many requests and bytes are taken on at a time.
        max_bytes: largest body.
        timeout: seconds in which the body must arrive.
    """

    def __init__(
        self, app: ASGIApp, *, paths: Collection[str], admission: Admission, max_bytes: int, timeout: float
    ) -> None:
        self._app = app
        self._paths = frozenset(paths)
        self._admission = admission
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        admission, body = self._admission, _Body(self._admission, self._max_bytes)
        if not admission.enter():
            await _refuse(busy(admission.retry_after), body, scope, receive, send)
            return
        begin = time.perf_counter()
        try:
            scope[_JSON] = await self._read(body, Headers(scope=scope), receive)
            scope[_SIZE] = body.num_bytes
            await self._app(scope, replay(body.join(), receive), send)
        except _RefusedError as refused:
            await _refuse(refused.error, body, scope, receive, send)
        except _ClientLeftError:
            pass
        finally:
            admission.leave(body.num_bytes, time.perf_counter() - begin)

    async def _read(self, body: "_Body", headers: Headers, receive: Receive) -> Any:
        """Return the parsed body. Raises `_RefusedError` and `_ClientLeftError`."""
        try:
            async with asyncio.timeout(self._timeout):
                await body.read(headers, receive)
            return await _parse(body.join())
        except TimeoutError:
            late = ApiError(408, f"The request did not arrive completely within {self._timeout:g} s.")
            raise _RefusedError(late) from None
        except ApiError as error:
            raise _RefusedError(error) from None


class _Body:
    """A body that arrives in parts."""

    def __init__(self, admission: Admission, max_bytes: int):
        self.num_bytes = 0
        self.is_complete = False
        self._parts: list[bytes] = []
        self._admission = admission
        self._max_bytes = max_bytes

    async def read(self, headers: Headers, receive: Receive) -> None:
        """Read the body. Raises `ApiError` if it is not JSON or over a limit, `_ClientLeftError` if it is cut off."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise ApiError(415, "Send the request as JSON, with the header 'content-type: application/json'.")
        if headers.get("content-encoding", "").lower() not in ("", "identity"):
            raise ApiError(415, "Send the request without compression, and without the header 'content-encoding'.")
        stated = headers.get("content-length", "")
        if stated.isdigit() and (len(stated) > 18 or int(stated) > self._max_bytes):
            raise self._too_large()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeftError
            part: bytes = message.get("body", b"")
            self.is_complete = not message.get("more_body", False)
            self.num_bytes += len(part)
            self._admission.bytes += len(part)
            if self.num_bytes > self._max_bytes:
                raise self._too_large()
            if self._admission.bytes > self._admission.max_bytes:
                raise busy(self._admission.retry_after)
            self._parts.append(part)
            if self.is_complete:
                return

    def join(self) -> bytes:
        """Return the body in one piece."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"The request is larger than {self._max_bytes:,} bytes, the limit of this server. Send fewer or smaller "
            "images and videos.",
            code="request_too_large",
        )


async def _parse(body: bytes) -> Any:
    return await _work(len(body), lambda: parse_json(body))


async def with_body(scope: Scope, work: Callable[[Any], Result]) -> Result:
    """Return what `work` makes of the parsed body of a request that `RequestBodies` has read."""
    return await _work(scope[_SIZE], lambda: work(scope[_JSON]))


async def _work(num_bytes: int, work: Callable[[], Result]) -> Result:
    """Call `work`, which reads so many bytes: in a thread if they are many."""
    return work() if num_bytes < THREAD_BYTES else await asyncio.to_thread(work)


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text. Raises `ApiError` if it is not JSON, too deep, or of too many values."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ApiError(400, f"The body holds more than {MAX_VALUES:,} JSON values.")
    if not body:
        raise ApiError(400, "The body is empty; expected a JSON object.")
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except (ValueError, RecursionError) as error:
        reason = printable(str(error)).replace("recursion limit exceeded", "it nests too deeply")
        raise ApiError(400, f"The body is not valid JSON: {reason}.", code="invalid_json") from None
    _check_nodes(value)
    return value


def _check_nodes(value: Any) -> None:
    """Raise `ApiError` if a JSON value holds too many others, or an object too many fields."""
    waiting, count = [value], 0
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            fields = cast("dict[str, Any]", node)
            if len(fields) > MAX_FIELDS:
                raise ApiError(400, f"An object in the body has {len(fields):,} fields; the limit is {MAX_FIELDS:,}.")
            inner = fields.values()
        elif isinstance(node, list):
            inner = cast("list[Any]", node)
        else:
            continue
        count += len(inner)
        if count > MAX_NODES:
            raise ApiError(400, f"The body holds more than {MAX_NODES:,} JSON values. Send the latest messages only.")
        waiting.extend(one for one in inner if isinstance(one, dict | list))


async def _refuse(error: ApiError, body: _Body, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error, after reading what the client still sends, for a while."""
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while not body.is_complete:
                message = await receive()
                body.is_complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
    except TimeoutError:
        error.headers["connection"] = "close"
    await error.response(scope, receive, send)


class _ParsedRequest(Request):
    async def json(self) -> Any:
        """Return the body, which the middleware has parsed."""
        return self.scope[_JSON]


class JsonRoute(APIRoute):
    """A route whose body `RequestBodies` has read."""

    def get_route_handler(self) -> Any:
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Any:
            return await handle(_ParsedRequest(request.scope, request.receive))

        return handle_parsed
