"""Real replicas under Ray Serve: routing by media, a killed replica, and cancelled requests."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from vila_serve.replicas.front import Front
from vila_serve.replicas.run import start_replicas


def build_app() -> FastAPI:
    """Return an application that says which process answers, slowly if asked to."""
    app = FastAPI()

    @app.post("/who")
    async def who(request: Request) -> dict[str, int]:
        await asyncio.sleep((await request.json()).get("seconds", 0))
        return {"pid": os.getpid()}

    @app.post("/stream")
    async def stream(request: Request) -> StreamingResponse:
        log = Path((await request.json())["log"])

        async def events() -> Any:
            try:
                for number in range(100):
                    yield f"data: {number} {os.getpid()}\n\n"
                    await asyncio.sleep(0.1)
            finally:
                log.write_text("ended")

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with start_replicas(build_app, 2, max_requests=8, max_body_bytes=10_000) as front:
        yield front


async def post(front: Front, path: str, content: Any, *, leaves_after: float | None = None) -> list[Any]:
    """Send a request to the front; return the ASGI messages of the answer."""
    sent: list[Any] = []
    incoming = [{"type": "http.request", "body": json.dumps(content).encode()}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await asyncio.sleep(leaves_after or 600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "client": None,
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await front(scope, receive, send)
    return sent


def question(image: int, **fields: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    return {"messages": [{"role": "user", "content": [part]}], **fields}


async def who(front: Front, content: dict[str, Any]) -> int:
    sent = await post(front, "/who", content)
    assert sent[0]["status"] == 200, sent
    return json.loads(sent[1]["body"])["pid"]


def test_the_same_image_reaches_the_same_replica(front: Front):
    async def run() -> list[list[int]]:
        return [[await who(front, question(image)) for image in range(20)] for _ in range(2)]

    first, second = asyncio.run(run())
    assert first == second
    assert len(set(first)) == 2


def test_no_request_is_lost_when_a_replica_is_killed(front: Front):
    async def run() -> tuple[int, list[int], list[int]]:
        victim = await who(front, question(0))
        requests = [asyncio.create_task(who(front, question(image % 20, seconds=1))) for image in range(14)]
        await asyncio.sleep(0.4)
        os.kill(victim, signal.SIGKILL)
        answered = await asyncio.gather(*requests)
        pids: set[int] = set()
        deadline = time.monotonic() + 60
        while len(pids) < 2 and time.monotonic() < deadline:  # the service recovers by itself
            pids = {await who(front, question(image)) for image in range(20)}
        return victim, answered, sorted(pids)

    victim, answered, pids = asyncio.run(run())
    assert len(answered) == 14
    assert victim not in answered
    assert len(pids) == 2
    assert victim not in pids


def test_a_stream_of_a_killed_replica_ends_with_an_error_event(front: Front, tmp_path: Path):
    async def run() -> list[Any]:
        request = asyncio.create_task(post(front, "/stream", question(1, log=str(tmp_path / "log"))))
        await asyncio.sleep(0.1)
        victim = await who(front, question(1))
        await asyncio.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        return await request

    sent = asyncio.run(run())
    assert sent[0]["status"] == 200
    events = b"".join(message.get("body", b"") for message in sent[1:]).decode().strip().split("\n\n")
    assert events[0].startswith("data: 0 ")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_a_client_that_leaves_ends_the_answer_in_the_replica(front: Front, tmp_path: Path):
    log = tmp_path / "log"

    async def run() -> None:
        await post(front, "/stream", question(2, log=str(log)), leaves_after=1)
        deadline = time.monotonic() + 8  # the whole answer takes ten seconds
        while not log.exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert log.exists()
