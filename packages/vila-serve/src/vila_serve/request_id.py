"""The id of the request that is being answered: in the log, and in the header `x-request-id` of its response."""

import re
import uuid
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""None outside of a request."""

_ACCEPTABLE = re.compile(r"[A-Za-z0-9._-]{8,128}")


def choose_request_id(from_client: str | None) -> str:
    """Return the client's id for the request if it is harmless in a log, else a new one."""
    if from_client is not None and _ACCEPTABLE.fullmatch(from_client):
        return from_client
    return f"req_{uuid.uuid4().hex}"
