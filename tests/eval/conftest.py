"""A judge on this machine that says what a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Response:
    """What the judge answers: `body` as JSON, a text as it is."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    delay_s: float = 0.0


def completion(text: object, prompt_tokens: int = 100, completion_tokens: int = 10) -> dict[str, Any]:
    """A chat completion as OpenAI's API gives it."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {
        "model": "judge-2026-01-01",
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": usage,
    }


class FakeJudge:
    """`react` gets the request's body and its number, and returns the text of the reply, or a whole `Response`."""

    Response = Response
    completion = staticmethod(completion)

    def __init__(self, url: str):
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.react: Callable[[dict[str, Any], int], str | Response] = lambda body, number: "7"
        self._lock = threading.Lock()

    def take(self, body: dict[str, Any], authorization: str | None) -> Response:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.authorizations.append(authorization)
        reaction = self.react(body, number)
        return Response(body=completion(reaction)) if isinstance(reaction, str) else reaction


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            if self.path != "/v1/chat/completions":
                response = Response(404, {"error": {"message": f"no such path: {self.path}"}})
            else:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                response = fake.take(body, self.headers["Authorization"])
            time.sleep(response.delay_s)
            content = (response.body if isinstance(response.body, str) else json.dumps(response.body)).encode()
            try:
                self.send_response(response.status)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                self.close_connection = True  # the client did not wait

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeJudge(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()
