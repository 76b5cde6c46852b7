"""The front before several replicas: nothing is lost when one dies, and a client that leaves cancels its request."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp

from vila_serve.affinity import affinity_key
from vila_serve.api.bodies import parse_json
from vila_serve.replicas.front import ReplicaDiedError, ReplicasFullError, create_front
from vila_serve.replicas.messages import HttpRequest, ResponseStart
from vila_serve.replicas.metrics import merge
from vila_serve.settings import ServeSettings

JSON = ResponseStart(200, ((b"content-type", b"application/json"),))
EVENTS = ResponseStart(200, ((b"content-type", b"text/event-stream; charset=utf-8"),))

ANSWERS = """# HELP vila_answers_total Answers.
# TYPE vila_answers_total counter
vila_answers_total{{reason="stop"}} {}
"""

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

    async def metrics(self) -> dict[str, str]:
        return {"one": ANSWERS.format(3), "two": ANSWERS.format(4)}


def front(replicas: ScriptedReplicas, **settings: Any) -> ASGIApp:
    return create_front(replicas, ServeSettings(replicas=2, **settings))


def ask(
    app: ASGIApp,
    body: bytes = b"{}",
    *,
    path: str = "/v1/chat/completions",
    key: str = "key",
    leaves_after: float | None = None,
    chunks: int = 1,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> list[Any]:
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

    sent_headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http", "method": method or ("POST" if path.startswith("/v1/chat") else "GET"), "path": path,
        "query_string": b"a=1", "client": ["127.0.0.1", 5000],
        "headers": [(name.encode(), value.encode()) for name, value in sent_headers.items()],
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 120))
    return sent


def body_of(sent: list[Any]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


def test_a_request_and_its_answer_arrive_whole():
    replicas = ScriptedReplicas([JSON, b'{"a":', b"1}"])
    sent = ask(front(replicas), b'{"model": "m"}', chunks=3)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], body_of(sent)) == (200, b'{"a":1}')
    assert JSON.headers[0] in sent[0]["headers"]
    (request,) = replicas.requests
    assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", b"a=1")
    assert (request.body, request.client) == (b'{"model": "m"}', ("127.0.0.1", 5000))
    assert dict(request.headers)[b"authorization"] == b"Bearer key"
    assert dict(request.headers)[b"content-length"] == b"14"
    assert dict(request.headers)[b"x-request-id"] == dict(sent[0]["headers"])[b"x-request-id"]


def test_a_stream_is_sent_part_by_part():
    sent = ask(front(ScriptedReplicas([EVENTS, b"data: 1\n\n", b"data: 2\n\n"])))
    assert [message.get("body") for message in sent[1:]] == [b"data: 1\n\n", b"data: 2\n\n", b""]


@pytest.mark.parametrize(
    "first",
    [[ReplicaDiedError()], [JSON, ReplicaDiedError()], [JSON, b"{", ReplicaDiedError()]],
    ids=["before the status", "after the status", "within the body"],
)
def test_another_replica_answers_what_a_dead_one_did_not_finish(first: Script):
    replicas = ScriptedReplicas(first, [JSON, b"{}"])
    sent = ask(front(replicas))
    assert (sent[0]["status"], body_of(sent), len(replicas.requests)) == (200, b"{}", 2)
    assert replicas.requests[0] == replicas.requests[1]


def test_a_stream_that_has_begun_ends_with_an_error_event():
    replicas = ScriptedReplicas([EVENTS, b"data: 1\n\n", ReplicaDiedError()], [JSON])
    sent = ask(front(replicas))
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
    sent = ask(front(ScriptedReplicas(*[[ReplicaDiedError()]] * 3)))
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"] == b"5"
    assert json.loads(body_of(sent))["error"]["type"] == "server_error"


def test_full_replicas_are_status_429():
    sent = ask(front(ScriptedReplicas([ReplicasFullError()])))
    assert sent[0]["status"] == 429
    assert dict(sent[0]["headers"])[b"retry-after"] == b"5"


@pytest.mark.parametrize(("size", "status"), [(1024, 200), (1025, 413), (5000, 413)])
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_long_body_is_refused(size: int, status: int, chunks: int):
    replicas = ScriptedReplicas([JSON, b"{}"])
    sent = ask(front(replicas, max_request_bytes=1024), b'"' + b"x" * (size - 2) + b'"', chunks=chunks)
    assert sent[0]["status"] == status
    assert len(replicas.requests) == (status == 200)


def test_the_key_is_asked_for_before_a_replica_sees_anything():
    replicas = ScriptedReplicas([JSON, b"{}"])
    guarded = front(replicas, api_key="secret")
    assert ask(guarded, key="wrong")[0]["status"] == 401
    assert ask(guarded, path="/metrics", key="wrong")[0]["status"] == 401
    assert replicas.requests == []
    assert ask(guarded, key="secret")[0]["status"] == 200


def test_routes_that_only_read_are_answered_by_a_replica_or_say_that_none_does(monkeypatch: pytest.MonkeyPatch):
    assert ask(front(ScriptedReplicas([JSON, b"[]"])), path="/v1/models")[0]["status"] == 200
    monkeypatch.setattr("vila_serve.replicas.front.STATUS_SECONDS", 0.2)
    late = ask(front(ScriptedReplicas([JSON, b"[]"], delay=5)), path="/health")
    assert late[0]["status"] == 503
    assert json.loads(body_of(late))["error"]["message"] == "No replica answers now."


def test_metrics_name_the_replica():
    sent = ask(front(ScriptedReplicas()), path="/metrics")
    text = body_of(sent).decode()
    assert 'vila_answers_total{reason="stop",replica="one"} 3.0' in text
    assert 'vila_answers_total{reason="stop",replica="two"} 4.0' in text
    assert text.count("# TYPE vila_answers_total counter") == 1


def test_merged_metrics_keep_histograms():
    text = (
        '# HELP t Time.\n# TYPE t histogram\nt_bucket{le="1.0"} 2.0\nt_bucket{le="+Inf"} 3.0\nt_count 3.0\nt_sum 4.0\n'
    )
    merged = merge({"a": text, "b": text}).decode()
    assert 't_bucket{le="+Inf",replica="b"} 3.0' in merged
    assert merged.count("# TYPE t histogram") == 1


def test_a_client_that_leaves_ends_its_request():
    replicas = ScriptedReplicas([EVENTS, *[b"data: x\n\n"] * 1000], delay=0.01)
    ask(front(replicas), leaves_after=0.1)
    assert replicas.ended == 1
    assert len(replicas.scripts) == 0


def test_the_front_agrees_to_startup_and_shutdown():
    async def run() -> list[Any]:
        incoming, sent = ["lifespan.startup", "lifespan.shutdown"], []

        async def receive() -> Any:
            return {"type": incoming.pop(0)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await front(ScriptedReplicas())({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


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
    assert affinity_key(json.loads(one)) == affinity_key(json.loads(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(user("What?", "data:a")), chat(user("What?", "data:b"))),
        (chat(SYSTEM, user("Hi")), chat(SYSTEM, user("Ho"))),
        (chat(user("Hi")), chat(SYSTEM, user("Hi"))),
        (b"{}", b"[]"),
        (b"1", b"2"),
        (b'{"prompt": "a cat", "seed": 1}', b'{"prompt": "a dog", "seed": 1}'),
    ],
)
def test_other_requests_do_not(one: bytes, other: bytes):
    assert affinity_key(json.loads(one)) != affinity_key(json.loads(other))


@pytest.mark.parametrize(
    "body",
    [
        b"null", b"[]", b'"x"', b"1.5", b'{"messages": 1}', b'{"messages": [1, null, [], {}]}',
        b'{"messages": [{"content": [1, {"type": 3}, {"type": "image_url"}, {"type": "image_url", "image_url": 5}]}]}',
        b"[" * 150 + b"]" * 150, b'{"messages": [{"role": ["user"], "content": {"a": 1}}]}',
        b'{"messages": [{"content": [{"type": ["image_url"]}]}]}',
    ],
    ids=[str(number) for number in range(10)],
)  # fmt: skip
def test_any_json_has_a_key(body: bytes):
    assert len(affinity_key(parse_json(body))) == 32


@pytest.mark.parametrize("size", [10, 2_000_000], ids=["small", "large"])
def test_a_body_is_parsed_once_and_a_large_one_outside_the_event_loop(size: int, monkeypatch: pytest.MonkeyPatch):
    threads: dict[str, list[threading.Thread]] = {"parse": [], "key": []}

    def noted(kind: str, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda value: (threads[kind].append(threading.current_thread()), work(value))[1]

    monkeypatch.setattr("vila_serve.api.bodies.parse_json", noted("parse", parse_json))
    monkeypatch.setattr("vila_serve.replicas.front.affinity_key", noted("key", affinity_key))
    monkeypatch.setattr(json, "loads", None)  # the only other way to read a body
    sent = ask(front(ScriptedReplicas([JSON, b"{}"])), chat(user("What?", "data:" + "a" * size)))
    assert sent[0]["status"] == 200
    assert all(len(found) == 1 for found in threads.values())
    in_loop = [found[0] is threading.main_thread() for found in threads.values()]
    assert in_loop == [size < 1_000_000] * 2


def test_a_page_of_an_allowed_site_may_call_the_front():
    """A browser asks for that without the key; answers and errors of the front say so, each once."""
    site = {"origin": "https://example.org"}
    app = front(ScriptedReplicas([ResponseStart(200, (*JSON.headers, (b"access-control-allow-origin", b"*")))]),
                api_key="key", cors_origins=("https://example.org",))  # fmt: skip
    asked = ask(app, method="OPTIONS", key="", headers={**site, "access-control-request-method": "POST"})
    assert asked[0]["status"] == 200
    for key, status in (("key", 200), ("wrong", 401)):
        sent = ask(app, key=key, headers=site)
        allowed = [value for name, value in sent[0]["headers"] if name == b"access-control-allow-origin"]
        assert (sent[0]["status"], allowed) == (status, [b"https://example.org"])
