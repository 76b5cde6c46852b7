"""A server with the embedded model on loopback, started once for all tests of this folder, and its clients."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.running_server import RunningServer, running

import vila_core
from vila_serve.api.app import create_app
from vila_serve.settings import ServeSettings

MEDIA = Path(__file__).parents[2] / "examples" / "media"


LEFT_TO_THE_COLLECTOR = "ignore:(?s).*Response.aiter_raw:pytest.PytestUnraisableExceptionWarning"
"""httpx leaves the generator of a response that is closed early to the garbage collector, which runs in any thread."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings(LEFT_TO_THE_COLLECTOR))


@pytest.fixture(scope="session")
def model() -> vila_core.Vila:
    return vila_core.load("vila-tiny")


@pytest.fixture(scope="session")
def server(model: vila_core.Vila) -> Iterator[RunningServer]:
    with running(create_app(model, ServeSettings(max_request_bytes=4_000_000))) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=240) as made:
        yield made


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=240) as made:
        yield made


@pytest.fixture
def serve_with(model: vila_core.Vila) -> Iterator[Callable[..., RunningServer]]:
    """Start another server of the same model with these settings."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(create_app(model, ServeSettings(**settings))))


def data_uri(name: str) -> str:
    """Return a bundled image or video as a `data:` URI."""
    kind = "video/mp4" if name.endswith(".mp4") else "image/png"
    return f"data:{kind};base64,{base64.b64encode((MEDIA / name).read_bytes()).decode()}"


def image_part(name: str, **fields: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(name), **fields}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [text_part(part) if isinstance(part, str) else part for part in parts]}
