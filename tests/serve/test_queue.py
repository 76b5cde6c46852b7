"""Requests that wait, leave, or meet the end of the server."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from tests.running_server import RunningServer, running, wait_until
from tests.serve.conftest import MEDIA, image_part, user

from vila_core import Vila
from vila_core.engine import grammar
from vila_core.errors import VilaWarning
from vila_serve.api.app import create_app
from vila_serve.settings import ServeSettings

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "vila-tiny", "messages": [user("Tell me a long story.")], **fields}


ENDLESS = {
    "temperature": 0,
    "max_tokens": 1900,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "long", "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 900}},
    },
}
"""An answer that cannot end early."""


def is_idle(server: RunningServer) -> bool:
    return server.requests + server.app.state.service.admission.requests == 0


def test_schemas_that_take_long_to_compile_delay_no_other_request(server: RunningServer, monkeypatch: Any):
    """Some schemas take minutes. As many of them as there are threads once stopped the whole server for that time."""
    goes_on, waiting = threading.Event(), list[str]()
    compile_now = grammar._Compiler.compile  # pyright: ignore[reportPrivateUsage]

    def compile_slowly(compiler: Any, schema: dict[str, Any]) -> Any:
        if schema.get("title") == "slow":
            waiting.append("one")
            assert goes_on.wait(120)
        return compile_now(compiler, schema)

    monkeypatch.setattr(grammar._Compiler, "compile", compile_slowly)  # pyright: ignore[reportPrivateUsage]
    schema = {"name": "slow", "schema": {"title": "slow", "type": "integer", "maximum": 9, "minimum": 0}}
    slow = body(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=4)
    with ThreadPoolExecutor(20) as clients:
        answers = [clients.submit(httpx2.post, f"{server.url}{CHAT}", json=slow, timeout=120) for _ in range(20)]
        try:
            wait_until(lambda: bool(waiting))
            assert httpx2.post(f"{server.url}{CHAT}", json=body(max_tokens=2), timeout=60).status_code == 200
            assert not any(answer.done() for answer in answers)
        finally:
            goes_on.set()
        assert {answer.result().status_code for answer in answers} == {200}


def cancelled(server: RunningServer) -> float:
    """Return how many answers have ended because nobody waited for them any more."""
    found = re.search(
        r'^vila_answers_total{reason="cancelled"} ([0-9.]+)', httpx2.get(f"{server.url}/metrics").text, re.MULTILINE
    )
    return 0 if found is None else float(found[1])


def test_a_stream_ends_when_its_client_leaves(server: RunningServer):
    before = cancelled(server)
    with httpx2.stream("POST", f"{server.url}{CHAT}", json=body(**ENDLESS, stream=True), timeout=120) as response:
        lines = response.iter_lines()
        for _, line in zip(range(60), lines, strict=False):
            assert not line or line.startswith("data: {")
        assert not is_idle(server)
    wait_until(lambda: is_idle(server))
    assert cancelled(server) == before + 1


def test_an_answer_ends_when_its_client_leaves(server: RunningServer):
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{server.url}{CHAT}", json=body(**ENDLESS, n=3), timeout=0.5)
    wait_until(lambda: is_idle(server))


def test_a_client_that_leaves_while_its_prompt_is_prepared(
    serve_with: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
):
    server = serve_with()
    side = server.app.state.service.answering.link.side
    original, is_preparing, client_left = side._prepare, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        is_preparing.set()
        assert client_left.wait(120)
        return original(*arguments)

    monkeypatch.setattr(side, "_prepare", slow)
    request, address = json.dumps(body(**ENDLESS)).encode(), urlsplit(server.url)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(request)}\r\n\r\n"
    )
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=120) as connection:
        connection.sendall(head.encode() + request)
        assert is_preparing.wait(120)
    client_left.set()
    wait_until(lambda: is_idle(server))


def test_a_full_queue_is_said_with_a_time_to_wait(serve_with: Callable[..., RunningServer]):
    server = serve_with(max_batch=1, max_queue=1)
    first = [httpx2.stream("POST", f"{server.url}{CHAT}", json=body(**ENDLESS, stream=True), timeout=120) for _ in "ab"]
    opened = [one.__enter__() for one in first]
    try:
        wait_until(lambda: server.app.state.service.admission.requests == 2)
        refused = httpx2.post(f"{server.url}{CHAT}", json=body(), timeout=120)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert httpx2.get(f"{server.url}/ready").status_code == 503
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.chat.completions.create(model="vila-tiny", messages=[user("Hello")])
    finally:
        for one in first:
            one.__exit__(None, None, None)
    assert all(one.status_code == 200 for one in opened)
    wait_until(lambda: is_idle(server))
    assert httpx2.get(f"{server.url}/ready").status_code == 200
    assert httpx2.post(f"{server.url}{CHAT}", json=body(max_tokens=2), timeout=120).status_code == 200


def test_all_bodies_together_are_limited(serve_with: Callable[..., RunningServer]):
    server = serve_with(max_buffered_bytes=20_000)
    large = body(messages=[user("word " * 6000)])
    response = httpx2.post(f"{server.url}{CHAT}", json=large, timeout=120)
    assert response.status_code == 429
    assert httpx2.post(f"{server.url}{CHAT}", json=body(max_tokens=2), timeout=120).status_code == 200


def test_a_request_that_trickles_in_is_ended(serve_with: Callable[..., RunningServer]):
    server = serve_with(body_timeout=0.5)

    def trickle() -> Any:
        while True:  # ends when the server ends it
            yield b" "
            time.sleep(0.05)

    try:
        response = httpx2.post(
            f"{server.url}{CHAT}", content=trickle(), headers={"content-type": "application/json"}, timeout=60
        )
        assert response.status_code == 408
    except httpx2.TransportError:
        pass  # the server closed the connection while the client was still writing
    wait_until(lambda: is_idle(server))


QUESTIONS = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))


def test_many_clients_get_their_own_answers(server: RunningServer):
    """Images of all kinds, streamed and not, with clients that leave in between; each answer is the right one."""
    images = [case for case in QUESTIONS if not case["media"][0].endswith(".mp4")]

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        case = images[number % len(images)]
        asked: dict[str, Any] = {
            "model": "vila-tiny",
            "temperature": 0,
            "messages": [user(*map(image_part, case["media"]), case["text"])],
        }
        if number % 7 == 3:
            stream = await client.chat.completions.create(**asked, stream=True)
            await anext(aiter(stream))
            await stream.close()
        elif number % 2:
            stream = await client.chat.completions.create(**asked, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == case["answer"]
        else:
            answer = await client.chat.completions.create(**asked)
            assert answer.choices[0].message.content == case["answer"]

    async def ask_all() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            await asyncio.gather(*(ask(client, number) for number in range(64)))

    asyncio.run(ask_all())
    wait_until(lambda: is_idle(server))


def test_the_loop_answers_while_prompts_are_prepared(server: RunningServer, http: httpx2.Client):
    """/health answers while large histories are tokenized and long answers run."""
    with ThreadPoolExecutor(4) as threads:
        asked = body(messages=[user("word " * 50_000)])
        running = [threads.submit(httpx2.post, f"{server.url}{CHAT}", json=asked, timeout=120) for _ in range(4)]
        answered = 0
        while not all(one.done() for one in running):
            assert http.get("/health").status_code == 200
            answered += 1
        assert all(one.result().status_code == 400 for one in running)
    assert answered > 12, "if each of the four prompts stopped the loop, few requests would get through between them"


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the program in a process of its own."""
    program = [sys.executable, "-m", "vila_serve", *arguments]
    return subprocess.Popen(
        program, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, **environment}
    )


def address_in(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Serving"):
            return line.split()[-1].removesuffix("/v1")
    raise AssertionError("the server did not start")


def test_the_program_finishes_what_runs(tmp_path: Path):
    """SIGTERM in the middle of a stream: the stream is completed, no request is taken on, the exit code is 0."""
    process = start(VILA_PORT="0", VILA_MODEL_NAME="mine")
    try:
        url = address_in(process)
        wait_until(lambda: _answers(url))
        asked = {**body(**ENDLESS, stream=True), "model": "mine", "max_tokens": 80}
        with httpx2.stream("POST", f"{url}{CHAT}", json=asked, timeout=120) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()


def test_requests_that_a_stopping_server_does_not_finish(model: Vila):
    """They get an error of OpenAI's form once the time is over: a stream, an answer, and an upload that hangs."""
    has_begun = threading.Event()
    app = create_app(model, ServeSettings(page=False))
    with ThreadPoolExecutor(3) as clients, running(app, shutdown_timeout=0) as server:
        answer = clients.submit(httpx2.post, f"{server.url}{CHAT}", json=body(**ENDLESS), timeout=120)
        stream = clients.submit(streamed, server, has_begun)
        upload = clients.submit(half_a_request, server)
        assert has_begun.wait(120)
        wait_until(lambda: server.requests == 2 and app.state.service.admission.requests == 3)
    for response in (answer.result().text, upload.result().partition("\r\n\r\n")[2]):
        assert json.loads(response)["error"]["code"] == "server_stopping"
    assert (answer.result().status_code, answer.result().headers["retry-after"]) == (503, "10")
    assert json.loads(stream.result()[-1].removeprefix("data: "))["error"]["code"] == "server_stopping"


def streamed(server: RunningServer, has_begun: threading.Event) -> list[str]:
    """Return the events of an answer that cannot end early."""
    events: list[str] = []
    asked = body(**ENDLESS, stream=True)
    with httpx2.stream("POST", f"{server.url}{CHAT}", json=asked, timeout=120) as response:
        for line in response.iter_lines():
            events += [line] if line else []
            has_begun.set()
    return events


def half_a_request(server: RunningServer) -> str:
    """Send the beginning of a request and return the response, without chunks."""
    address = urlsplit(server.url)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n"
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=120) as connection:
        connection.sendall(head.encode() + b'{"model":')
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_more_answers_than_will_ever_find_a_place(serve_with: Callable[..., RunningServer]):
    server = serve_with(max_batch=1, max_queue=2, page=False)
    refused = httpx2.post(f"{server.url}{CHAT}", json=body(n=4), timeout=60)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    assert "at most 3 answers" in refused.json()["error"]["message"]


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ready").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--port", "99999"], {}, "--port must be 65535 or less, got 99999."),
        ([], {"VILA_PORT": "http"}, "VILA_PORT must be a whole number, got 'http'."),
        ([], {"VILA_MAX_BATCH": "0"}, "VILA_MAX_BATCH must be 1 or more, got '0'."),
        (["--max-context", "1"], {}, "--max-context must be 2 or more, got 1."),
        (["--host", "no.such.host.invalid"], {}, "The host 'no.such.host.invalid'"),
        (["--host", "192.0.2.1"], {}, "is not an address of this machine"),
        (["--workers", "4"], {}, "one process answers all requests"),
        ([], {"VILA_WORKERS": "2"}, "VILA_WORKERS is '2', but one process"),
        (["--log-level", "loud"], {}, "--log-level must be 'critical', 'error', 'warning', 'info' or 'debug'"),
        (["--model-path", "/no/such/folder"], {}, "No folder '/no/such/folder'"),
        ([], {"VILA_MODEL_PATH": "/no/such/folder"}, "No folder '/no/such/folder'"),
        (["--conv-mode", "vicuna"], {}, "vicuna_v1"),
        (["--dtype", "int3"], {}, "Unknown dtype 'int3'"),
        (["--device", "tpu"], {}, "Unknown device 'tpu'"),
        (["--cache-bytes", "0"], {}, "--cache-bytes must be more than 0, got 0."),
        (
            ["--allow-domain", "https://a.example"],
            {},
            "--allow-domain has 'https://a.example': expected a host such as",
        ),
        ([], {"VILA_ALLOW_DOMAIN": "*"}, "VILA_ALLOW_DOMAIN has '*'"),
        ([], {"VILA_ALLOW_DOMAINS": "b.example,*.a.example"}, "VILA_ALLOW_DOMAINS has '*.a.example': write it with a"),
        (["--cors-origin", "a.example"], {}, "--cors-origin has 'a.example': expected an origin such as"),
        (["--cors-origin", "https://a.example/"], {}, "--cors-origin has 'https://a.example/': expected an origin"),
        (["--otlp-endpoint", "localhost:4318"], {}, "--otlp-endpoint must be a URL such as http://localhost"),
    ],
)
def test_wrong_settings_are_named_in_one_line(
    arguments: list[str], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    from vila_serve.cli import main

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["--port", "0", *arguments] if "--port" not in arguments and "VILA_PORT" not in environment else arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last


def test_lists_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VILA_ALLOW_DOMAIN", "a.example, .b.example")
    monkeypatch.setenv("VILA_CORS_ORIGINS", "https://a.example")
    settings = ServeSettings.read()
    assert settings.allow_domains == ("a.example", ".b.example")
    assert settings.cors_origins == ("https://a.example",)
    assert ServeSettings.read({"allow_domains": "c.example"}).allow_domains == ("c.example",)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("VILA_MODEL", "Use model_path"),
        ("VILA_MAX_MODEL_LEN", "Use max_context"),
        ("VILA_MAXBATCH", "Did you mean VILA_MAX_BATCH?"),
        ("VILA_APIKEY", "Did you mean VILA_API_KEY?"),
        ("VILA_PORTS", "Did you mean VILA_PORT?"),
    ],
)
def test_a_misspelled_variable_is_said(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, "7")
    with pytest.warns(VilaWarning, match=f"{variable} is not a setting of the server. {re.escape(hint)}"):
        ServeSettings.read()


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    for name in ("VILA_PLUGINS", "VILA_STRICT_PLUGINS", "VILA_EVAL_CACHE", "VILA_QUANT_CACHE", "VILA_JUDGE_API_KEY"):
        monkeypatch.setenv(name, "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ServeSettings.read()


def test_a_taken_port_is_said_before_the_model_is_loaded(server: RunningServer, capsys: Any):
    from vila_serve.cli import main

    port = server.url.rpartition(":")[2]
    with pytest.raises(SystemExit):
        main(["--port", port, "--model-path", "/no/such/folder"])
    assert f"Port {port} of 127.0.0.1 is taken by another program" in capsys.readouterr().err
