"""Requests that cannot be answered: the status, OpenAI's error object, and nothing of the inside of the server."""

import gzip
import json
import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from pydantic import ValidationError
from tests.running_server import RunningServer, model_of
from tests.serve.conftest import image_part, text_part, user

from vila_serve.api import http_protocol
from vila_serve.api.errors import as_api_error
from vila_serve.api.schemas.chat import ChatCompletionRequest

CHAT = "/v1/chat/completions"
INSIDE = re.compile(r"Traceback|/work|/usr|/home|/tmp|\.py\b|site-packages|0x[0-9a-f]{6}|vila_core|vila_serve|pydantic")


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "vila-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **fields}


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the error object, after checking what every error has."""
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["message"]
    assert not INSIDE.search(response.text), response.text
    assert response.headers["x-request-id"]
    return found


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


WRONG = [
    # what is sent, the field that is named, a part of the message
    ({"messages": []}, "messages", "1 or more"),
    ({"messages": None}, "messages", "list"),
    ({"messages": "Hello"}, "messages", "list"),
    ({"messages": {"role": "user"}}, "messages", "list"),
    ({"messages": [None]}, "messages[0]", ""),
    ({"messages": ["Hello"]}, "messages[0]", ""),
    ({"messages": [{"content": "Hello"}]}, "messages[0].role", "missing"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    (
        {"messages": [{"role": "boss", "content": "Hello"}]},
        "messages[0].role",
        "'user', 'assistant', 'tool', got 'boss'",
    ),
    ({"messages": [{"role": "User", "content": "Hello"}]}, "messages[0].role", "got 'User'"),
    ({"messages": [{"role": 3, "content": "Hello"}]}, "messages[0].role", "got 3"),
    ({"messages": [{"role": None, "content": "Hello"}]}, "messages[0].role", "got null"),
    ({"messages": [{"role": "function", "name": "f", "content": "Hello"}]}, "messages[0].role", "'function'"),
    (said(None), "messages[0].content", "must be a text or a list of parts, got null"),
    (said(5), "messages[0].content", "must be a text or a list of parts, got 5"),
    (said({"type": "text", "text": "Hello"}), "messages[0].content", "must be a text or a list of parts"),
    (said(None, "system"), "messages[0].content", "must be a text or a list of parts, got null"),
    (said(""), "messages", "empty"),
    (said("   \n"), "messages", "empty"),
    (said([]), "messages", "empty"),
    (said(["Hello"]), "messages[0].content[0]", ""),
    (said([{"text": "Hello"}]), "messages[0].content[0].type", "missing"),
    (said([{"type": "text"}]), "messages[0].content[0].text", "missing"),
    (said([{"type": "text", "text": None}]), "messages[0].content[0].text", "text"),
    (said([{"type": "text", "text": 7}]), "messages[0].content[0].text", "text"),
    (said([text_part("a"), {"type": "image"}]), "messages[0].content[1].type", "'image_url', 'video_url', got 'image'"),
    (said([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type", "got 'input_audio'"),
    (said([{"type": "file", "file": {"file_id": "x"}}]), "messages[0].content[0].type", "must be one of 'text'"),
    (said([{"type": "image_url", "image_url": {"url": "x"}}], "system"), "messages[0].content[0].type", "'text'"),
    (said([{"type": "image_url", "image_url": {"url": "x"}}], "assistant"), "messages[0].content[0]", "data:image/png"),
    (said([{"type": "image_url"}]), "messages[0].content[0].image_url", "missing"),
    (said([{"type": "image_url", "image_url": "data:image/png;base64,AA=="}]), "messages[0].content[0].image_url", ""),
    (said([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].image_url.url", "missing"),
    (said([{"type": "image_url", "image_url": {"url": ""}}]), "messages[0].content[0].image_url.url", "1 or more"),
    (said([{"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}]), "", "detail"),
    (said([{"type": "video_url", "video_url": {"url": "x"}, "frames": 0}]), "messages[0].content[0].frames", "1 or"),
    (said([{"type": "video_url", "video_url": {"url": "x"}, "frames": 10**9}]), "messages[0].content[0].frames", ""),
    (said([{"type": "video_url", "video_url": {"url": "x"}, "fps": -1}]), "messages[0].content[0].fps", "more than"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages", "assistant"),
    ({"messages": [user("Hi"), {"role": "assistant", "content": "Hi"}]}, "messages", "end with"),
    ({"messages": [user("Hi"), {"role": "system", "content": "Be brief."}]}, "messages", "system"),
    ({"messages": [{"role": "tool", "tool_call_id": "1", "content": "4"}]}, "messages[0]", "tools"),
    ({"model": None}, "model", "text"),
    ({"model": 5}, "model", "text"),
    ({"temperature": -0.1}, "temperature", "0 or more"),
    ({"temperature": 2.1}, "temperature", "2 or less"),
    ({"temperature": "0"}, "temperature", "number"),
    ({"temperature": True}, "temperature", "number, got true"),
    ({"temperature": [1]}, "temperature", "number"),
    ({"top_p": 1.5}, "top_p", "1 or less"),
    ({"max_tokens": 0}, "max_tokens", "1 or more"),
    ({"max_tokens": -1}, "max_tokens", "1 or more"),
    ({"max_tokens": 1.5}, "max_tokens", "whole number"),
    ({"max_tokens": "many"}, "max_tokens", "whole number"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "1 or more"),
    ({"n": 0}, "n", "1 or more"),
    ({"n": 9}, "n", "at most 8"),
    ({"n": 1000}, "n", "128"),
    ({"seed": 2**63}, "seed", "less than"),
    ({"seed": 1.5}, "seed", "whole number"),
    ({"stop": ""}, "stop", "1 or more"),
    ({"stop": ["a"] * 65}, "stop", "64 or fewer"),
    ({"stop": ["a", None]}, "stop[1]", "text"),
    ({"stop": {"a": 1}}, "stop", "must be a text or a list of texts"),
    ({"stop": 3}, "stop", "must be a text or a list of texts, got 3"),
    ({"logprobs": 5}, "logprobs", "true or false"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20 or less"),
    ({"presence_penalty": 2.5}, "presence_penalty", "2 or less"),
    ({"frequency_penalty": -3}, "frequency_penalty", "-2 or more"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "100 or less"),
    ({"logit_bias": {"cat": 1}}, "logit_bias", "cat"),
    ({"logit_bias": {"1024": 1}}, "logit_bias", "the vocabulary has 1,024 tokens"),
    ({"logit_bias": {str(token): 1 for token in range(1001)}}, "logit_bias", "1000 or fewer"),
    ({"logit_bias": {str(2**31): 1}}, "logit_bias", "31 bits"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "-1"),
    ({"logit_bias": [5]}, "logit_bias", "JSON object"),
    ({"response_format": "json"}, "response_format", ""),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {}}, "response_format.type", "missing"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}},
        "response_format",
        "strange",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
        "response_format",
        "itself",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": []}}}},
        "response_format",
        "",
    ),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "Unknown field"),
    ({"modalities": ["text", "audio"]}, "modalities[1]", "text"),
    ({"audio": {"voice": "alloy"}}, "audio", "Unknown field"),
    ({"functions": [{"name": "f"}]}, "functions", "Unknown field"),
    ({"web_search_options": {}}, "web_search_options", "Unknown field"),
    ({"prompt": "Hello"}, "prompt", "Unknown field"),
    ({"num_beams": 4}, "num_beams", "must be 1"),
    ({"top_k": -1}, "top_k", "0 or more"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "does not support tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function"),
    ({"\u202eevil\n": 1}, None, "Unknown field"),
]


@pytest.mark.parametrize(("fields", "param", "part"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_field_is_named(http: httpx2.Client, fields: dict[str, Any], param: str | None, part: str):
    response = http.post(CHAT, json=body(**fields))
    found = error_of(response)
    assert response.status_code == 400
    assert found["type"] == "invalid_request_error"
    assert part in found["message"]
    if param:
        assert found["param"] == param
    assert "\u202e" not in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_errors_come_before_a_stream_begins(client: openai.OpenAI, stream: bool):
    with pytest.raises(openai.BadRequestError, match="context") as caught:
        client.chat.completions.create(
            model="vila-tiny", messages=[{"role": "user", "content": "word " * 3000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("name", ["gpt-4o", "", "VILA-TINY", "vila-tiny ", "../vila-tiny", "NVILA-8B", "x" * 5000])
def test_an_unknown_model_names_the_known_one(client: openai.OpenAI, name: str):
    with pytest.raises(openai.NotFoundError, match="This server serves 'vila-tiny'") as caught:
        client.chat.completions.create(model=name, messages=[user("Hi")])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "http://127.0.0.1:1/x.png",
        "https://example.org/x.png",
        "data:image/png;base64,",
        "data:image/png;base64,!!!!",
        "data:image/png;base64,aGVsbG8gd29ybGQ=",
        "data:text/plain;base64,aGVsbG8gd29ybGQ=",
        "data:video/mp4;base64,aGVsbG8gd29ybGQ=",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:,hello",
        "data:image/png,hello",
        "nonsense",
        "\x00",
    ],
)
def test_media_that_cannot_be_opened(http: httpx2.Client, uri: str):
    response = http.post(CHAT, json=body(messages=[user({"type": "image_url", "image_url": {"url": uri}}, "What?")]))
    found = error_of(response)
    assert response.status_code == 400
    assert "passwd" not in found["message"]
    video = http.post(CHAT, json=body(messages=[user({"type": "video_url", "video_url": {"url": uri}}, "What?")]))
    error_of(video)
    assert video.status_code == 400


def test_too_many_media(http: httpx2.Client):
    response = http.post(CHAT, json=body(messages=[user(*[image_part("word.png")] * 65, "What?")]))
    assert response.status_code == 400
    assert "65 images and videos; this server takes at most 64" in error_of(response)["message"]


def test_a_prompt_over_the_context_gives_the_counts(http: httpx2.Client):
    response = http.post(CHAT, json=body(messages=[user(*[image_part("word.png")] * 60, "What?")]))
    found = error_of(response)
    assert (response.status_code, found["code"]) == (400, "context_length_exceeded")
    assert re.search(r"has 2\d\d\d tokens .*image 60: 37.*the context is 2048", found["message"])


def test_a_message_of_many_small_parts(http: httpx2.Client):
    response = http.post(CHAT, json=body(messages=[{"role": "user", "content": [text_part("a")] * 30_000}]))
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"
    small = [text_part("Hel"), text_part("lo")]
    assert http.post(CHAT, json=body(messages=[{"role": "user", "content": small}])).status_code == 200


@pytest.mark.parametrize("roles", [("user", "assistant"), ("user",)], ids=["turns", "one role"])
def test_a_history_of_ten_thousand_messages(http: httpx2.Client, roles: tuple[str, ...]):
    messages = [{"role": roles[index % len(roles)], "content": "Hello"} for index in range(10_001)]
    response = http.post(CHAT, json=body(messages=messages))
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


DEEP = 5000
BODIES = [
    (b"", 400, "empty"),
    (b"{", 400, "not valid JSON"),
    (b'{"model": "vila-tiny", "messages": [{"role": "us', 400, "not valid JSON"),
    (b"nonsense", 400, "not valid JSON"),
    (b"\xff\xfe{}", 400, "not valid JSON"),
    (b'{"model": "\xff"}', 400, "not valid JSON"),
    (b'{"model": "\\ud800"}', 400, "not valid JSON"),
    (b'{"temperature": NaN}', 400, "not valid JSON"),
    (b'{"temperature": 1e999, "model": "a", "messages": []}', 400, ""),
    (b'{"seed": ' + b"9" * 100_000 + b"}", 400, ""),
    (b"{}{}", 400, "not valid JSON"),
    (b"{}", 400, "missing"),
    (b"[]", 400, "JSON object"),
    (b"null", 400, ""),
    (b'"Hello"', 400, "JSON object"),
    (b"5", 400, "JSON object"),
    (b"[" * DEEP + b"]" * DEEP, 400, "nests too deeply"),
    (b'{"metadata": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", 400, "nests too deeply"),
    (b"[" + b"[]," * 1_000_000 + b"[]]", 400, "more than 1,000,000 JSON values"),
    (b"[" + b"1," * 100_000 + b"1]", 400, "more than 100,000 JSON values"),
    (b'{"messages": [' + b'{"role":"user","content":"a"},' * 40_000 + b"1]}", 400, "more than 100,000 JSON values"),
    (b"{" + b"".join(b'"%d":1,' % key for key in range(10_000)) + b'"x":1}', 400, "10,001 fields"),
    (b'{"metadata": {' + b"".join(b'"%d":1,' % key for key in range(10_000)) + b'"x":1}}', 400, "10,001 fields"),
    (b'{"model": "' + b"x" * 4_000_000 + b'"}', 413, "4,000,000 bytes"),
]


@pytest.mark.parametrize(("data", "status", "part"), BODIES, ids=[repr(data[:30]) for data, _, _ in BODIES])
def test_a_body_that_is_no_request(http: httpx2.Client, data: bytes, status: int, part: str):
    response = http.post(CHAT, content=data, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert part in error_of(response)["message"]
    assert len(response.content) < 1000


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_a_body_that_is_not_said_to_be_json(http: httpx2.Client, kind: str | None):
    """A web page can send such a request to a server on its visitor's machine without asking the browser first."""
    headers = {} if kind is None else {"content-type": kind}
    response = http.post(CHAT, content=json.dumps(body()).encode(), headers=headers)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


def test_a_compressed_body(http: httpx2.Client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = http.post(CHAT, content=gzip.compress(json.dumps(body()).encode()), headers=headers)
    assert response.status_code == 415
    assert "without compression" in error_of(response)["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json"])
def test_other_ways_to_say_json(http: httpx2.Client, kind: str):
    response = http.post(CHAT, content=json.dumps(body()).encode(), headers={"content-type": kind})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/completions", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/%00", 404),
    ],
)
def test_addresses_without_a_route(http: httpx2.Client, method: str, path: str, status: int):
    response = http.request(method, path, json={} if method == "POST" else None)
    assert response.status_code == status
    message = error_of(response)["message"]
    words = {404: "There is nothing at this address.", 405: "This address does not take this method."}
    assert (status == 405) == ("allow" in response.headers)
    assert response.headers.get("allow", "POST") in ("POST", "GET, HEAD")
    assert message == words[status] or path.startswith("/v1/models/"), "a model's name may be anything"


@pytest.mark.parametrize("where", ["messages", "content", "tools"])
def test_the_first_of_many_wrong_entries_is_enough(http: httpx2.Client, where: str):
    """A list of all that is wrong would take seconds, in which no other request is served."""
    many = [5] * 90_000
    wrong = {"messages": {"messages": many}, "content": said(many), "tools": {"tools": many}}[where]
    response = http.post(CHAT, json=body(**wrong))
    assert response.status_code == 400
    assert str(error_of(response)["param"]).endswith("[0]")
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate(body(**wrong))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/vila-tiny", "/metrics", "/docs"])
def test_the_head_of_what_can_be_read(http: httpx2.Client, path: str):
    head, full = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == full.headers["content-type"]


def test_ids_of_requests(http: httpx2.Client):
    ids = {http.get("/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert http.get("/health", headers={"x-request-id": "trace-12345"}).headers["x-request-id"] == "trace-12345"
    for harmful in ("a b c d e f", "x" * 500, "<script>alert(1)</script>", "short"):
        assert http.get("/health", headers={"x-request-id": harmful}).headers["x-request-id"] != harmful


def test_words_of_an_unexpected_error_stay_inside():
    found = as_api_error(RuntimeError("a secret in /home/someone/.ssh at 0x7f0012345678"))
    assert (found.status, found.kind) == (500, "server_error")
    assert not INSIDE.search(found.message)
    assert "secret" not in found.message


@pytest.mark.parametrize("stream", [False, True])
def test_an_unexpected_error_shows_nothing(
    serve_with: Callable[..., RunningServer], stream: bool, monkeypatch: pytest.MonkeyPatch
):
    server = serve_with()
    service = server.app.state.service

    async def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret in /home/someone/.ssh at 0x7f0012345678")

    monkeypatch.setattr(type(service.answering), "answer", fail)
    response = httpx2.post(f"{server.url}{CHAT}", json=body(stream=stream), timeout=120)
    found = error_of(response)
    assert response.status_code == 500
    assert found["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in found["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fails_midway(
    serve_with: Callable[..., RunningServer], stream: bool, monkeypatch: pytest.MonkeyPatch
):
    """The status has been sent when a stream fails, so an event says so."""
    server = serve_with()
    scheduler = model_of(server.app).engine._scheduler
    original, steps = scheduler._answer, []

    def fail(runner: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            raise RuntimeError("a secret in /home/someone at 0x7f0012345678")
        original(runner)

    monkeypatch.setattr(scheduler, "_answer", fail)
    asked = body(stream=stream, max_tokens=64, messages=[user(image_part("scene.png"), "What is in the picture?")])
    response = httpx2.post(f"{server.url}{CHAT}", json=asked, timeout=120)
    assert "secret" not in response.text
    if stream:
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["type"] == "server_error"
    else:
        assert response.status_code == 500
        assert error_of(response)["type"] == "server_error"
    monkeypatch.undo()
    assert httpx2.post(f"{server.url}{CHAT}", json=body(), timeout=120).status_code == 200


def raw(server: RunningServer, data: bytes, *, then_close: bool = False) -> bytes:
    """Send bytes and return the first of the response."""
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=120) as connection:
        connection.sendall(data)
        return b"" if then_close else connection.recv(4096)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n-5\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
        b"GET /health\r\n\r\n",
    ],
    ids=["many headers", "a long header", "a long header in one piece", "a long path", "TLS", "negative length",
         "two lengths", "length and chunks", "other coding", "negative chunk", "two hosts", "null", "HTTP/0.9"],
)  # fmt: skip
def test_requests_that_are_no_http(server: RunningServer, http: httpx2.Client, data: bytes):
    try:
        response = raw(server, data)
    except (ConnectionResetError, BrokenPipeError):
        response = b""
    assert response[:12] in (b"", b"HTTP/1.1 400")
    if response:
        head, _, content = response.partition(b"\r\n\r\n")
        assert json.loads(content)["error"]["code"] == "invalid_http"
        assert b"x-request-id: req_" in head
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("length", [str(10**9), str(10**30)])
def test_a_large_body_is_refused_by_its_length(server: RunningServer, length: str):
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    assert raw(server, head.encode() + b"{")[:12] in (b"HTTP/1.1 413", b"HTTP/1.1 400")


def test_a_large_body_that_does_not_state_its_length(serve_with: Callable[..., RunningServer]):
    server = serve_with(max_request_bytes=2000)
    sent = json.dumps(body(user="x" * 3000)).encode()
    parts = (sent[start : start + 500] for start in range(0, len(sent), 500))
    response = httpx2.post(
        f"{server.url}{CHAT}", content=parts, headers={"content-type": "application/json"}, timeout=120
    )
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


def test_half_a_request_leaves_nothing(server: RunningServer, http: httpx2.Client):
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    for _ in range(50):
        raw(server, head.encode() + b'{"model": "vila-tiny", "messages": [{"role"', then_close=True)
    assert http.post(CHAT, json=body()).status_code == 200
    admission, end = server.app.state.service.admission, time.monotonic() + 120
    while (admission.requests, admission.bytes) != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.01)


HEAD = b"GET /health HTTP/1.1\r\nhost: x\r\n"
ENDLESS_BODY = b"POST /health HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begin", [b"", HEAD, HEAD + b"\r\n" + HEAD, ENDLESS_BODY], ids=repr)
def test_connections_that_send_too_slowly_are_closed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, begin: bytes
):
    """A client cannot keep a connection forever by sending a few bytes at a time."""
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=0.05) as connection:
        connection.sendall(begin)
        drip = b"1\r\nx\r\n" if begin == ENDLESS_BODY else b"x: y\r\n"
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                connection.sendall(drip if begin else b"")
                if not connection.recv(4096):
                    return
            except TimeoutError:
                pass
            except OSError:
                return
    pytest.fail("the connection was never closed")


def test_a_client_that_does_not_read_is_left(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(http_protocol, "STUCK_SECONDS", 0.3)
    caplog.set_level(logging.INFO)
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=120) as connection:
        connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n" * 30)  # 45 MB
        end = time.monotonic() + 120
        while "does not read" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_body_that_breaks_after_the_response(server: RunningServer, caplog: pytest.LogCaptureFixture):
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=120) as connection:
        connection.sendall(ENDLESS_BODY)
        received = b""
        while b"}}" not in received:
            received += connection.recv(4096)
        connection.sendall(b"-5\r\n")
        assert connection.recv(4096) == b"", "one response, and no second"
    assert received.startswith(b"HTTP/1.1 405")
    assert "Fatal error" not in caplog.text
