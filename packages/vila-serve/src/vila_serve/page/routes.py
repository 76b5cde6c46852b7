"""Lets only the page's own requests reach Gradio, and none of its other fifty routes.

Gradio can fetch addresses, serve files of its cache and of other servers, list its functions, and build components from
a request. None of that is needed here. So a request must be on the list below, files must lie in the page's own
folders, bodies are limited, and pages of other sites cannot make requests in the user's name.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vila_serve.asgi import replay
from vila_serve.page.pictures import stored_bytes

API = "/gradio_api"
UPLOAD, FILE, JOIN, HEARTBEAT = f"{API}/upload", f"{API}/file=", f"{API}/queue/join", f"{API}/heartbeat/"
_NAME = r"(?!\.)[\w.+-]+"
ROUTES = {
    "GET": re.compile(
        rf"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(static|assets|svelte)(/{_NAME})+"
        rf"|{API}/(theme\.css|startup-events|app_id|upload_progress|queue/data)/?|{API}/heartbeat/\w+|{API}/file=.+"
    ),
    "POST": re.compile(rf"{API}/(upload|queue/join|cancel|reset)/?"),
}
"""Paths by method. HEAD is GET."""
MAX_EVENT_BYTES = 4 << 20
"""Largest request other than an upload: a conversation with its texts."""
MAX_DEPTH = 64
SECURITY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Nothing comes from other servers, so that a picture in the text of an answer cannot carry the conversation away."""
NAMES_ITS_ADDRESS = ("/", "/config")
"""Paths of responses that hold the host of the request."""
_HOST = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
FILE_SECURITY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


class PageRoute(Mount):
    """Passes the requests of the page to Gradio. All others are passed to the next route, or are not found.

    Args:
        app: Gradio's application.
        uploads: the folder of uploaded files.
        folders: further folders whose files the page may show.
        max_upload_bytes: of one upload.
        max_stored_bytes: of all uploaded files together.
    """

    def __init__(
        self, app: ASGIApp, *, uploads: Path, folders: Sequence[Path], max_upload_bytes: int, max_stored_bytes: int
    ):
        super().__init__("", app=app)
        self._app = app
        self._uploads = uploads.resolve()
        self._folders = [self._uploads, *(folder.resolve() for folder in folders)]
        self._max_upload_bytes = max_upload_bytes
        self._max_stored_bytes = max_stored_bytes

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the requests of `ROUTES`."""
        if scope["type"] != "http":
            return Match.NONE, {}
        pattern = ROUTES.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if pattern is None or not pattern.fullmatch(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        path, headers = scope["path"].rstrip("/") or "/", Headers(scope=scope)
        if path.startswith(HEARTBEAT):
            # Gradio would keep the connection open, and the server could not stop while a page is open.
            await Response(status_code=204)(scope, receive, send)
            return
        if scope["method"] == "POST" and headers.get("sec-fetch-site") not in (None, "same-origin", "none"):
            raise HTTPException(403, "Requests of other sites are not accepted.")
        if path.startswith(FILE) and not self._may_read(scope["path"].removeprefix(FILE)):
            raise HTTPException(404)
        scope = _with_checked_address(scope)
        policy = FILE_SECURITY if path.startswith(FILE) else SECURITY
        send = _with_security(send, policy, may_be_cached=path not in NAMES_ITS_ADDRESS)
        if path == UPLOAD:
            self._check_room(headers)
            await self._limited_upload(scope, receive, send)
            return
        if scope["method"] == "POST":
            body = await _read(receive, MAX_EVENT_BYTES)
            if not self._is_harmless(_parse(body)):
                raise HTTPException(400, "The request names a file that was not uploaded.")
            receive = replay(body, receive)
        await super().handle(scope, receive, send)

    async def _limited_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on until it exceeds the limit, then answer with status 413."""
        limit, seen = self._max_upload_bytes, 0

        async def limited_receive() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _TooLargeError
            return message

        async def send_unless_too_large(message: Message) -> None:
            if seen <= limit:  # else Gradio reports the failed read
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await super().handle(scope, limited_receive, send_unless_too_large)
        if seen > limit:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        message = f"An upload may have at most {self._max_upload_bytes:,} bytes."
        return HTTPException(413, message, headers={"connection": "close"})  # else the client could go on sending

    def _may_read(self, name: str) -> bool:
        """Return whether a path, as it is and with escapes resolved once more, lies in the page's folders."""
        return all(self._is_inside(one) for one in {name, unquote(name)})

    def _is_inside(self, name: str) -> bool:
        path = Path(name)
        if "\0" in name or not path.is_absolute():
            return False
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        return any(resolved.is_relative_to(folder) for folder in self._folders)

    def _check_room(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max_upload_bytes:
            raise self._too_large()
        if stored_bytes(self._uploads) + self._max_upload_bytes > self._max_stored_bytes:
            raise HTTPException(507, "The server keeps too many uploaded files now. Try again later.")

    def _is_harmless(self, value: object, depth: int = 0) -> bool:
        """Return whether a body names files of the page's folders only, and no components that Gradio would build."""
        if depth > MAX_DEPTH:
            return False
        if isinstance(value, list):
            return all(self._is_harmless(one, depth + 1) for one in cast("list[object]", value))
        if not isinstance(value, dict):
            return True
        fields = cast("dict[str, object]", value)
        if fields.get("type") == "component" or "component" in fields or "constructor_args" in fields:
            return False
        path = fields.get("path")
        if path is not None and not (isinstance(path, str) and self._may_read(path)):
            return False
        return all(self._is_harmless(one, depth + 1) for one in fields.values())


class _TooLargeError(Exception):
    """The body of an upload exceeds the limit."""


async def _read(receive: Receive, limit: int) -> bytes:
    """Return a body. Raises `HTTPException` if it is too large, or the client leaves."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "The client left.")
        body += message.get("body", b"")
        if len(body) > limit:
            message = f"A request of the page may have at most {limit:,} bytes."
            raise HTTPException(413, message, headers={"connection": "close"})
        if not message.get("more_body", False):
            return bytes(body)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not JSON.") from None


def _with_checked_address(scope: Scope) -> Scope:
    """Return a request whose headers state no address but a host, which a proxy may set.

    Raises:
        HTTPException: the header of the proxy is not a host.
    """
    forwarded = Headers(scope=scope).get("x-forwarded-host", "").partition(",")[0].strip()
    if forwarded and not _HOST.fullmatch(forwarded):
        raise HTTPException(400, "The header 'x-forwarded-host' is not a host.")
    # Gradio would take this one for the page's whole address.
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name != b"x-gradio-server"]}


def _with_security(send: Send, policy: str, *, may_be_cached: bool) -> Send:
    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = policy
            headers["x-content-type-options"] = "nosniff"
            headers["referrer-policy"] = "same-origin"
            if not may_be_cached:
                headers["cache-control"] = "no-store"
        await send(message)

    return secured
