"""A server with the embedded model and the chat page on loopback, and a client that speaks as the page does."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.running_server import RunningServer, running

import vila_core
from vila_serve.api.app import create_app
from vila_serve.settings import ServeSettings

MEDIA = Path(__file__).parents[2] / "examples" / "media"
API = "/gradio_api"


def serving(model: vila_core.Vila, **settings: Any) -> AbstractContextManager[RunningServer]:
    """Serve the page of a model; its long answers get time to finish at the end."""
    return running(create_app(model, ServeSettings(**settings)), shutdown_timeout=20)


@pytest.fixture(scope="session")
def model() -> vila_core.Vila:
    return vila_core.load("vila-tiny")


@pytest.fixture(scope="session")
def server(model: vila_core.Vila) -> Iterator[RunningServer]:
    with serving(model, max_request_bytes=8_000_000, default_max_tokens=1800) as started:
        yield started


@pytest.fixture
def serve_with(model: vila_core.Vila) -> Iterator[Callable[..., RunningServer]]:
    """Start another server of the same model with these settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(model, **settings))


class PageClient:
    """Speaks to the page's routes as its scripts do."""

    def __init__(self, url: str, **options: Any):
        self.http = httpx2.Client(base_url=url, timeout=240, **options)
        self.session = f"s{time.monotonic_ns()}"

    def config(self) -> dict[str, Any]:
        """Return Gradio's description of the page."""
        return self.http.get("/config").json()

    def component(self, kind: str) -> dict[str, Any]:
        return next(one for one in self.config()["components"] if one["type"] == kind)

    def function(self, kind: str, event: str) -> int:
        """Return the number of the function that an event of a part calls."""
        number = self.component(kind)["id"]
        return next(one["id"] for one in self.config()["dependencies"] if [number, event] in map(list, one["targets"]))

    def answering_function(self) -> int:
        """Return the number of the function that streams an answer to a submitted question."""
        before = self.function("multimodaltextbox", "submit")
        return next(one["id"] for one in self.config()["dependencies"] if one.get("trigger_after") == before)

    def upload(self, *files: tuple[str, bytes]) -> httpx2.Response:
        return self.http.post(f"{API}/upload", files=[("files", (name, content)) for name, content in files])

    def join(self, function: int, data: list[Any], **fields: Any) -> httpx2.Response:
        body = {"fn_index": function, "data": data, "session_hash": self.session, **fields}
        return self.http.post(f"{API}/queue/join", json=body)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the messages of the functions that this session has called, until all have ended."""
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    event = json.loads(line.removeprefix("data:"))
                    yield event
                    if event["msg"] == "close_stream":
                        return

    def call(self, function: int, data: list[Any]) -> dict[str, Any]:
        """Call a function and return its last message."""
        assert self.join(function, data).status_code == 200
        return [event for event in self.events() if event["msg"] == "process_completed"][-1]

    def ask(self, text: str, files: list[str] | None = None, **choices: Any) -> httpx2.Response:
        """Start an answer to a conversation with one question."""
        parts: list[dict[str, Any]] = [
            {"type": "file", "file": {"path": path, "meta": {"_type": "gradio.FileData"}}} for path in files or []
        ]
        history = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        values = {
            "system_prompt": None,
            "max_tokens": 32,
            "temperature": 0,
            "top_p": 1,
            "seed": None,
            "frames": 8,
            "schema": None,
            **choices,
        }
        return self.join(self.answering_function(), [history, "en", *values.values()])


def streamed(page: PageClient) -> tuple[list[str], str, str]:
    """Return the texts that the page showed one after another, its last status line, and what the model saw."""
    texts, status, seen, state = list[str](), "", "", list[Any]()
    for event in page.events():
        if event["msg"] not in ("process_generating", "process_completed"):
            continue
        assert event["success"], event
        data = event["output"].get("data", [])
        if not data:
            continue
        if event["msg"] == "process_generating" and state:
            data = [apply(deepcopy(old), change) for old, change in zip(state, data, strict=True)]
        state = data
        conversation, _, status_now, seen_now = data
        if isinstance(conversation, list) and conversation and conversation[-1]["role"] == "assistant":
            text = conversation[-1]["content"][0]["text"]
            if not texts or texts[-1] != text:
                texts.append(text)
        status = status_now if isinstance(status_now, str) else status
        seen = seen_now if isinstance(seen_now, str) else seen
    return texts, status, seen


def apply(value: Any, changes: Any) -> Any:
    """Apply Gradio's list of changes to a value: [action, path, new value]."""
    if not isinstance(changes, list) or not all(isinstance(one, list) and len(one) == 3 for one in changes):
        return changes
    for action, path, new in changes:
        if not path:
            value = value + new if action == "append" else new
            continue
        target = value
        for key in path[:-1]:
            target = target[key]
        last = path[-1]
        if action == "append":
            target[last] += new
        elif action == "delete":
            del target[last]
        elif action == "add" and isinstance(target, list):
            target.insert(int(last), new)
        else:
            target[last] = new
    return value


@pytest.fixture
def page(server: RunningServer) -> Iterator[PageClient]:
    client = PageClient(server.url)
    yield client
    client.http.close()
