"""HTTP as uvicorn reads it, with OpenAI's error object for requests that are not HTTP."""

import json
import logging

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vila_serve.api.errors import ApiError
from vila_serve.request_id import choose_request_id

log = logging.getLogger(__name__)


class HttpProtocol(H11Protocol):
    """One connection. Such a request never reaches the application, so that its layers cannot answer it."""

    def send_400_response(self, msg: str) -> None:
        """Refuse a request and close the connection."""
        number = choose_request_id(None)
        log.info("Refused a request: %s", msg, extra={"data": {"id": number}})
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
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
