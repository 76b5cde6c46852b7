"""Only clients that know the API key get in, on every route but /health."""

import base64
import binascii
import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vila_serve.api.errors import ApiError

OPEN_PATHS = ("/health",)


class ApiKey:
    """Middleware that asks for the key: as `Authorization: Bearer KEY`, or, for browsers, as a Basic password."""

    def __init__(self, app: ASGIApp, key: str):
        self._app = app
        self._digest = hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._may_enter(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refusal(Headers(scope=scope)).response(scope, receive, send)

    def _may_enter(self, headers: Headers) -> bool:
        """Compare digests in constant time, so that neither the key's length nor its beginning can be measured."""
        given = _key_of(headers.get("authorization", ""))
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._digest)


def _key_of(authorization: str) -> bytes:
    """Return the key in an Authorization header; empty bytes without one."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _refusal(headers: Headers) -> ApiError:
    is_browser = "text/html" in headers.get("accept", "")
    message = (
        "Incorrect API key."
        if "authorization" in headers
        else "This server needs an API key: 'Authorization: Bearer …'."
    )
    challenge = 'Basic realm="vila-serve", charset="UTF-8"' if is_browser else "Bearer"
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": challenge})
