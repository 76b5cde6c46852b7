"""What the OpenAPI document says of all routes alike."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vila_serve.api.schemas.base import ErrorResponse

_REASONS = {
    400: "The request is not valid; `error.param` names the field.",
    401: "The API key is missing or wrong.",
    404: "The model does not exist.",
    408: "The request did not arrive in time.",
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
    """Let `app` describe itself without status 422, which FastAPI adds: wrong requests get 400 here, as at OpenAI."""

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
