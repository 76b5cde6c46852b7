"""The OpenAPI document, and a page that shows it without loading anything from the internet."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, Response

from vila_serve.api.schemas.base import ErrorResponse

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
"""Files of Swagger UI that the page needs."""
SECURITY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_REASONS = {
    400: "The request is not valid; `error.param` names the field.",
    401: "The API key is missing or wrong.",
    404: "The model does not exist.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; try again after the time in the header `retry-after`.",
    500: "The server failed; its log says why under the id in the header `x-request-id`.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": reason} for status, reason in _REASONS.items()
}
STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}


def document(app: FastAPI) -> None:
    """Let `app` describe itself, at /openapi.json for programs and at /docs for people.

    Status 422, which FastAPI adds, is left out: wrong requests get 400 here, as at OpenAI.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            for methods in described["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
            for unused in ("HTTPValidationError", "ValidationError"):
                described["components"]["schemas"].pop(unused, None)
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = describe
    _add_page(app)


def _add_page(app: FastAPI) -> None:
    """Serve Swagger UI. FastAPI's own page loads it from a public server, which an edge device may not reach."""
    addresses = {name: f"docs/{name}" for name in ASSETS}  # relative: a proxy may put a prefix before all paths
    script, style, icon = addresses.values()
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=f"{app.title}: API",
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
    ).body
    folder = Path(fastapi_offline.__file__).parent / "static"

    def add(path: str, respond: Callable[[], Response]) -> None:
        async def answer() -> Response:
            return respond()

        app.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)

    add("/docs", lambda: HTMLResponse(page, headers={"content-security-policy": SECURITY}))
    for name, address in addresses.items():
        add(f"/{address}", partial(FileResponse, folder / name))
