"""Errors as OpenAI's API reports them: `{"error": {"message", "type", "param", "code"}}` with a matching status.

No message holds a traceback, a path or an inner address: an unexpected error is logged with the id of its request, and
the client gets that id only.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vila_core.engine.limits import QueueFullError
from vila_core.errors import (
    GenerationError,
    MediaError,
    PromptError,
    PromptTooLongError,
    ValidationProblem,
    VilaError,
    printable,
    read_problem,
    shown,
)
from vila_serve.answering import EngineStoppedError
from vila_serve.request_id import request_id

log = logging.getLogger(__name__)

INVALID, RATE, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
"""OpenAI's types of errors."""
_SETTING = re.compile(r"(?:Generation|Drawing) setting '(\w+)'")
_WORDS = {404: "There is nothing at this address.", 405: "This address does not take this method."}
_STATELESS = " This server keeps no conversations: send the whole one each time."
_INSTEAD = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "functions": " Use 'tools'.",
    "function_call": " Use 'tool_choice'.",
}
"""Fields of OpenAI's API that are not known here -> what to do instead."""

RESTART_SECONDS = 10
"""After which a client may find the server started again."""
MAX_MESSAGE, MAX_PARAM = 1000, 200
"""Most characters of what the client gets: names of fields that it sent may be of any length."""


class ApiError(Exception):
    """An error for the client.

    Args:
        status: of the response.
        message: one line.
        kind: OpenAI's "type".
        param: the field of the request that is wrong.
        code: a word that programs can test.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What the client gets."""
        param = None if self.param is None else _shortened(self.param, MAX_PARAM)
        message = _shortened(self.message, MAX_MESSAGE)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[1 - most // 2 :]}"


def busy(retry_after: int) -> ApiError:
    """Return the error of a request that would have to wait behind too many others."""
    return ApiError(
        429,
        f"The server is busy: its queue is full. Try again in {retry_after} s.",
        kind=RATE,
        code="rate_limit_exceeded",
        headers={"retry-after": str(retry_after)},
    )


def internal_error() -> ApiError:
    """Return the error for a client when anything unexpected happened."""
    return ApiError(
        500, f"The server failed to answer. Its log says why under request {request_id.get()}.", kind=SERVER
    )


def engine_stopped() -> ApiError:
    """Return the error of a request whose engine has ended. The log of the server says why, once."""
    return _unavailable(
        "The engine of this server stopped before the request was answered. Try again once it has been started.",
        code="engine_stopped",
    )


def server_stops() -> ApiError:
    """Return the error of a request that a stopping server does not answer in time."""
    return _unavailable(
        "The server is stopping, and did not answer the request in time. Try again when it is running.",
        code="server_stopping",
    )


def _unavailable(message: str, *, code: str) -> ApiError:
    return ApiError(503, message, kind=SERVER, code=code, headers={"retry-after": str(RESTART_SECONDS)})


def as_api_error(error: Exception) -> ApiError:
    """Return what the client gets of an error in the handling of its request. Unexpected ones are logged here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return busy(1)
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, PromptError):
        return ApiError(400, str(error), param="messages")
    if isinstance(error, MediaError):
        return ApiError(400, str(error), param="messages", code="invalid_media")
    if isinstance(error, GenerationError):
        return wrong_setting(error)
    if isinstance(error, EngineStoppedError):
        return engine_stopped()
    log.error("A request failed.", exc_info=error)
    return internal_error()


def wrong_setting(error: GenerationError, schema_field: str = "response_format") -> ApiError:
    """Return the error for a setting that the engine refuses; `schema_field` is the field that holds a JSON schema."""
    message = str(error).replace("Generation setting 'json_schema'", "The JSON schema")
    if found := _SETTING.match(message):
        param = {"max_new_tokens": "max_tokens"}.get(found[1], found[1])
        return ApiError(400, f"'{param}'{message[found.end() :]}", param=param, code="invalid_value")
    return ApiError(400, message, param=schema_field if "schema" in message else None)


def failed_answer(error: Exception) -> ApiError:
    """Return what the client gets when an answer fails that had begun: the reason lies in the model or the machine."""
    if isinstance(error, EngineStoppedError):
        return engine_stopped()
    log.error("An answer failed: %s", error, exc_info=None if isinstance(error, VilaError) else error)
    return internal_error()


def validation_error(problems: Sequence[Mapping[str, Any]], body: object) -> ApiError:
    """Return the error for a body that does not fit its schema.

    Args:
        problems: as pydantic lists them (`ValidationError.errors()`).
        body: what was sent.
    """
    problem = read_problem(problems[0])
    param = _as_path([part for part in problems[0]["loc"] if part != "body"], body)
    if problem.kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_kind(problem, problems[0]["ctx"], param)
    if problem.kind == "extra_forbidden":
        message = printable(f"Unknown field '{param}'.") + _INSTEAD.get(param, "")
        return ApiError(400, message, param=param, code="unknown_parameter")
    if not param:
        return ApiError(400, f"The body {_sentence(problem.message)}.")
    if problem.kind == "missing":
        return _missing(param)
    got = "" if isinstance(problem.value, dict | list) else f", got {_as_json(problem.value)}"
    return ApiError(400, printable(f"'{param}' {_sentence(problem.message)}{got}."), param=param, code="invalid_value")


def _wrong_kind(problem: ValidationProblem, context: Mapping[str, Any], param: str) -> ApiError:
    """Return the error for an object whose `type` or `role` says none of the kinds that it may be."""
    name = str(context["discriminator"]).strip("'")
    param = f"{param}.{name}" if param else name
    if problem.kind == "union_tag_not_found":
        return _missing(param)
    fields = cast("Mapping[str, object]", problem.value) if isinstance(problem.value, Mapping) else {}
    message = f"'{param}' must be one of {context['expected_tags']}, got {_as_json(fields.get(name))}."
    return ApiError(400, printable(message), param=param, code="invalid_value")


def _missing(param: str) -> ApiError:
    return ApiError(400, f"The field '{param}' is missing.", param=param, code="missing_required_parameter")


def _as_json(value: object) -> str:
    """Return a value as people write it, and null, true and false as in JSON."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)


def _sentence(message: str) -> str:
    """Return a message as the end of a sentence whose subject is the field."""
    return message if message.startswith(("must ", "is ", "has ")) else f"is not valid: {message.rstrip('.')}"


def _as_path(location: Sequence[str | int], body: object) -> str:
    """Return the place of a problem as OpenAI writes it: `messages[0].content[1].type`.

    Pydantic's location also has the name of each alternative that it chose, which is the object's type or role, before
    the fields of the object. It is left out.
    """
    path, current, is_chosen = "", body, False
    for index, part in enumerate(location):
        if isinstance(part, int) and isinstance(current, list):
            path, is_chosen = f"{path}[{part}]", False
            entries = cast("list[object]", current)
            current = entries[part] if part < len(entries) else None
        elif isinstance(current, dict):
            fields = cast("dict[object, object]", current)
            if not is_chosen and part in (fields.get("type"), fields.get("role")):
                is_chosen = True
            elif part in fields or index == len(location) - 1:
                path, is_chosen = f"{path}.{part}" if path else str(part), False
                current = fields.get(part)
    return path


def install_handlers(app: FastAPI) -> None:
    """Let `app` report every error in OpenAI's form."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_error(error.errors(), error.body).response

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = _WORDS.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"  # another route
        return ApiError(error.status_code, message, headers=headers).response

    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ApiError, on_error)
    app.add_exception_handler(VilaError, on_error)
