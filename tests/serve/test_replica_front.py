"""The front before several replicas: nothing is lost when one dies, and a client that leaves cancels its request."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from vila_serve.replicas.affinity import affinity_key
from vila_serve.replicas.front import Front, ReplicaDiedError, ReplicasFullError
from vila_serve.replicas.messages import HttpRequest, ResponseStart

JSON = ResponseStart(200, ((b"content-type", b"application/json"),))
EVENTS = ResponseStart(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))

Script = list[ResponseStart | bytes | Exception]


class ScriptedReplicas:
    """Answers each call with the next script; an exception in it is raised."""

    def __init__(self, *scripts: Script, delay: float = 0):
        self.scripts = list(scripts)
        self.delay = delay
        self.requests: list[HttpRequest] = []
        self.ended = 0

    async def answer(self, request: HttpRequest) -> AsyncIterator[ResponseStart | bytes]:
        self.requests.append(request)
        try:
            for part in self.scripts.pop(0):
                await asyncio.sleep(self.delay)
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.ended += 1


def ask(front: Front, body: bytes = b"{}", *, leaves_after: float | None = None, chunks: int = 1) -> list[Any]:
    """Send one request to the front; return the ASGI messages of its answer."""
    sent: list[Any] = []
    size = -(-len(body) // chunks) or 1
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    incoming = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]

    async def receive() -> Any:
        if incoming:
            return incoming.pop(0)
        await asyncio.sleep(60 if leaves_after is None else leaves_after)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"a=1",
        "headers": [(b"authorization", b"Bearer key")], "client": ["127.0.0.1", 5000],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(front(scope, receive, send), 10))
    return sent


def body_of(sent: list[Any]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


def test_a_request_and_its_answer_arrive_whole():
    replicas = ScriptedReplicas([JSON, b'{"a":', b"1}"])
    sent = ask(Front(replicas, max_body_bytes=1000), b'{"model": "m"}', chunks=3)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], sent[0]["headers"], body_of(sent)) == (200, list(JSON.headers), b'{"a":1}')
    (request,) = replicas.requests
    assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", b"a=1")
    assert (request.body, request.client) == (b'{"model": "m"}', ("127.0.0.1", 5000))
    assert request.headers == ((b"authorization", b"Bearer key"),)


def test_a_stream_is_sent_part_by_part():
    sent = ask(Front(ScriptedReplicas([EVENTS, b"data: 1\n\n", b"data: 2\n\n"]), max_body_bytes=1000))
    assert [message.get("body") for message in sent[1:]] == [b"data: 1\n\n", b"data: 2\n\n", b""]


@pytest.mark.parametrize(
    "first",
    [[ReplicaDiedError()], [JSON, ReplicaDiedError()], [JSON, b"{", ReplicaDiedError()]],
    ids=["before the status", "after the status", "within the body"],
)
def test_another_replica_answers_what_a_dead_one_did_not_finish(first: Script):
    replicas = ScriptedReplicas(first, [JSON, b"{}"])
    sent = ask(Front(replicas, max_body_bytes=1000))
    assert (sent[0]["status"], body_of(sent), len(replicas.requests)) == (200, b"{}", 2)
    assert replicas.requests[0] == replicas.requests[1]


def test_a_stream_that_has_begun_ends_with_an_error_event():
    replicas = ScriptedReplicas([EVENTS, b"data: 1\n\n", ReplicaDiedError()], [JSON])
    sent = ask(Front(replicas, max_body_bytes=1000))
    events = body_of(sent).decode().strip().split("\n\n")
    assert events[0] == "data: 1"
    error = json.loads(events[1].removeprefix("data: "))["error"]
    assert (error["type"], error["message"]) == (
        "server_error",
        "The replica that answered this request stopped. Try again.",
    )
    assert sent[-1]["more_body"] is False
    assert len(replicas.requests) == 1


def test_when_every_attempt_fails_the_client_is_told_to_try_again():
    sent = ask(Front(ScriptedReplicas(*[[ReplicaDiedError()]] * 3), max_body_bytes=1000))
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"] == b"5"
    assert json.loads(body_of(sent))["error"]["type"] == "server_error"


def test_full_replicas_are_status_429():
    sent = ask(Front(ScriptedReplicas([ReplicasFullError()]), max_body_bytes=1000))
    assert sent[0]["status"] == 429
    assert dict(sent[0]["headers"])[b"retry-after"] == b"5"


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413), (5000, 413)])
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_long_body_is_refused(size: int, status: int, chunks: int):
    replicas = ScriptedReplicas([JSON, b"{}"])
    sent = ask(Front(replicas, max_body_bytes=10), b"x" * size, chunks=chunks)
    assert sent[0]["status"] == status
    assert len(replicas.requests) == (status == 200)


def test_a_client_that_leaves_ends_its_request():
    replicas = ScriptedReplicas([EVENTS, *[b"data: x\n\n"] * 1000], delay=0.01)
    ask(Front(replicas, max_body_bytes=1000), leaves_after=0.1)
    assert replicas.ended == 1
    assert len(replicas.scripts) == 0


def test_the_front_agrees_to_startup_and_shutdown():
    async def run() -> list[Any]:
        incoming, sent = ["lifespan.startup", "lifespan.shutdown"], []

        async def receive() -> Any:
            return {"type": incoming.pop(0)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await Front(ScriptedReplicas(), max_body_bytes=1)({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# ------------------------------------------------------------------------------------------------ affinity


def chat(*messages: Any, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def user(text: str, *urls: str, kind: str = "image_url") -> Any:
    media = [{"type": kind, kind: {"url": url}} for url in urls]
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "A cat."}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(user("What?", "data:a")), chat(user("Why?", "data:a"))),
        (chat(user("What?", "data:a")), chat(SYSTEM, user("Why?", "data:a", "data:b"), temperature=1)),
        (chat(user("What?", "data:v", kind="video_url")), chat(user("Why?", "data:v", kind="video_url"))),
        (chat(user("What?", "data:a")), chat(user("What?", "data:a"), ANSWER, user("Sure?"))),
        (chat(SYSTEM, user("Hi")), chat(SYSTEM, user("Hi"), ANSWER, user("And?"), stream=True)),
        (
            chat(user("What?", "data:a")),
            json.dumps(
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:a"}]}]}
            ).encode(),
        ),
    ],
    ids=["same image", "first of two images", "same video", "later turn with an image", "later turn", "responses"],
)
def test_requests_that_share_a_beginning_share_a_key(one: bytes, other: bytes):
    assert affinity_key(one) == affinity_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(user("What?", "data:a")), chat(user("What?", "data:b"))),
        (chat(SYSTEM, user("Hi")), chat(SYSTEM, user("Ho"))),
        (chat(user("Hi")), chat(SYSTEM, user("Hi"))),
        (b"{", b"["),
        (b"1", b"2"),
    ],
)
def test_other_requests_do_not(one: bytes, other: bytes):
    assert affinity_key(one) != affinity_key(other)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"NaN", b'{"messages": 1}', b'{"messages": [1, null, [], {}]}',
        b'{"messages": [{"content": [1, {"type": 3}, {"type": "image_url"}, {"type": "image_url", "image_url": 5}]}]}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"messages": [{"role": ["user"], "content": {"a": 1}}]}',
        b'{"messages": [{"content": [{"type": ["image_url"]}]}]}',
    ],
    ids=[str(number) for number in range(13)],
)  # fmt: skip
def test_any_bytes_have_a_key(body: bytes):
    assert len(affinity_key(body)) == 32
