"""Bad requests at a running server: each gets a short error in OpenAI's form, which tells nothing about the server."""

import gzip
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.running_server import RunningServer, model_of
from tests.serve.conftest import user
from tests.serve.media_files import encoded, gif_bomb, png_bomb, sound, uri, video

CHAT = "/v1/chat/completions"
SECONDS = 60.0
"""How long one bad request may take on a busy machine."""

REVEALING = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|0x[0-9a-f]{6,}| object at |<class|<built-in|Errno|Exception\b"
    r"|pydantic|starlette|fastapi|uvicorn|h11\b|PIL\b|Pillow|libav|ffmpeg|torch|numpy|jinja|tokenizers"
    r"|127\.0\.0\.\d|169\.254|localhost|passwd|MediaLimits|FetchPolicy|vila_core|vila_serve"
    rf"|{re.escape(sys.prefix)}|{re.escape(str(Path(__file__).parents[2]))}|{re.escape(str(Path.home()))}/"
    rf"|/tmp\b|/usr/|/etc/|/proc/|/dev/|\b{re.escape(socket.gethostname())}\b",
    re.IGNORECASE,
)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "vila-tiny", "max_tokens": 4, "messages": [user("Hello?")], **fields}


def image(url: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def clip(url: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **fields}}


def nested(depth: int, opening: str = "[", middle: str = "", closing: str = "]") -> str:
    return opening * depth + middle + closing * depth


URLS = (
    "/etc/passwd", "file:///etc/passwd", "../../../etc/passwd", "http://127.0.0.1:1/", "https://127.0.0.1/a.png",
    "https://localhost/a.png", "https://169.254.169.254/latest/meta-data/", "https://[::1]/", "https://a\\@b/",
    "https://user:password@example.org/a.png", "ftp://example.org/a.png", "data:image/png;base64,!!!",
    "data:text/html,<script>", "data:image/svg+xml;base64,PHN2Zy8+", "", " ", "\x00", "\ud800", "x" * 100_000,
    "https://" + "a" * 100_000, "data:" + ";" * 100_000, "%2e%2e%2fetc%2fpasswd", "/proc/self/environ", "/dev/zero",
    "https://example.org/" + "%0d%0aHost:%20x", "javascript:alert(1)", "\u202eexample.org", 7, None, [], {}, True,
)  # fmt: skip
CONTENTS: dict[str, bytes] = {
    "text": b"hello",
    "a page": b"<html>",
    "an SVG": b'<svg><image href="file:///etc/passwd"/></svg>',
    "a PDF": b"%PDF-1.7",
    "a pickle": b"\x80\x04\x95cos\nsystem\n",
    "a truncated PNG": encoded()[:50],
    "a PNG bomb": png_bomb(60_000, 60_000),
    "a GIF bomb": gif_bomb(60_000, 60_000, 9),
    "an animated GIF bomb": gif_bomb(9_000, 9_000, 5_000),
    "sound": sound(),
    "a playlist": b"#EXTM3U\nfile:///etc/passwd\n",
    "a truncated video": video()[:900],
}
PATHS = (
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1/models/%2e%2e%2f%2e%2e%2f",
    "/v1/models/" + "a" * 5000,
    "/.env",
    "/static/../../etc/passwd",
    "/\\..\\..\\etc",
    "/%00",
    "/v1/chat/completions/x",
)
SCHEMAS = ({"type": "nonsense"}, {"$ref": "file:///etc/passwd"})


def bad_requests() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield the name, method, path and arguments of requests that must get a status from 400 to 499."""
    for url in URLS:
        for kind in (image, clip):
            fields = body(messages=[user(kind(url), "What?")])
            text = json.dumps(fields)  # escapes lone surrogates, which clients in other languages send so too
            yield f"{kind.__name__} {url!r:.40}", "POST", CHAT, {"content": text, "headers": JSON}
        if isinstance(url, str):
            part = {"type": "input_image", "image_url": url}
            asked = {"model": "vila-tiny", "input": [{"role": "user", "content": [part]}]}
            yield f"response {url!r:.40}", "POST", "/v1/responses", {"content": json.dumps(asked), "headers": JSON}
    for name, content in CONTENTS.items():
        for kind, media_type in ((image, "image/png"), (clip, "video/mp4")):
            if (name, kind) == ("an animated GIF bomb", clip):
                continue
            yield (
                f"{name} as {media_type}",
                "POST",
                CHAT,
                {"json": body(messages=[user(kind(uri(content, media_type)))])},
            )
    for frames in (0, -1, 10**9, 1.5, "many"):
        part = clip(uri(video(), "video/mp4"), frames=frames)
        yield f"{frames} frames", "POST", CHAT, {"json": body(messages=[user(part, "What?")])}
    for schema in SCHEMAS:
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        yield f"schema {schema}", "POST", CHAT, {"json": body(response_format=wanted)}
    for name, content in JSON_BOMBS.items():
        yield name, "POST", CHAT, {"content": content, "headers": JSON}
    for path in PATHS:
        yield f"path {path:.40}", "GET", path, {}
    packed = gzip.compress(b'{"model": "' + b"a" * 50_000_000)
    yield "a gzip bomb", "POST", CHAT, {"content": packed, "headers": {**JSON, "content-encoding": "gzip"}}
    yield "another type", "POST", CHAT, {"content": b"model=a", "headers": {"content-type": "text/html"}}
    yield (
        "form data",
        "POST",
        CHAT,
        {"content": b"--a\r\n\r\n--a--", "headers": {"content-type": "multipart/form-data; boundary=a"}},
    )


JSON = {"content-type": "application/json"}
_MESSAGES = '{"model": "vila-tiny", "messages": %s}'
JSON_BOMBS: dict[str, str | bytes] = {
    "nothing": b"",
    "half": b'{"model": "vila',
    "deep lists": nested(100_000),
    "deep lists without an end": "[" * 500_000,
    "deep objects": nested(100_000, '{"a":', "1", "}"),
    "deep messages": _MESSAGES % nested(100_000),
    "deep content": _MESSAGES % f'[{{"role": "user", "content": {nested(50_000)}}}]',
    "deep schema": json.dumps(body())[:-1]
    + ', "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": '
    + nested(5_000, '{"properties": {"a": ', '{"type": "string"}', "}}")
    + "}}}",
    "a long number": f'{{"model": {"9" * 1_000_000}}}',
    "a number with a long exponent": json.dumps(body())[:-1] + ', "temperature": 1e999999999}',
    "a long seed": json.dumps(body())[:-1] + f', "seed": {"9" * 5_000}}}',
    "not a number": json.dumps(body())[:-1] + ', "temperature": NaN}',
    "infinity": json.dumps(body())[:-1] + ', "temperature": -Infinity}',
    "many keys": "{" + ",".join(f'"key{number}": 1' for number in range(100_000)) + "}",
    "a long key": json.dumps({**body(), "a" * 1_000_000: 1}),
    "many messages": _MESSAGES % ("[" + ",".join(["0"] * 300_000) + "]"),
    "another encoding": json.dumps(body(model="ü")).encode("utf-16"),
    "broken UTF-8": b'{"model": "\xff\xfe"}',
    "a null character": b'{"model": "\x00"}',
    "a list": b"[]",
    "null": b"null",
    "text": b'"hello"',
    "two documents": b"{}{}",
    "a name of 100 KB": json.dumps(body(model="m" * 100_000)),
    "a role of 100 KB": json.dumps(body(messages=[{"role": "r" * 100_000, "content": "x"}])),
    "control characters": json.dumps(body(model="a\r\nset-cookie: b=c\x1b[2J")),
    "markup": json.dumps(body(model="<script>alert(1)</script>")),
    "a format string": json.dumps(body(model="{0.__class__} %s %n ${jndi:ldap://x}")),
}


def revealed_by(response: httpx2.Response) -> str | None:
    """Return what a response tells about the server, if anything."""
    text = response.text + "\n" + "\n".join(f"{name}: {value}" for name, value in response.headers.items())
    found = REVEALING.search(text)
    return None if found is None else f"{found[0]!r} in {text[max(0, found.start() - 80) : found.end() + 80]!r}"


def test_bad_requests_reveal_nothing(http: httpx2.Client) -> None:
    failures: list[str] = []
    count = 0
    for name, method, path, arguments in bad_requests():
        count += 1
        started = time.monotonic()
        response = http.request(method, path, **arguments)
        took = time.monotonic() - started
        if not 400 <= response.status_code < 500:
            failures.append(f"{name}: status {response.status_code}: {response.text[:200]}")
        if took > SECONDS:
            failures.append(f"{name}: took {took:.1f} s")
        if len(response.text) > 2000:
            failures.append(f"{name}: the response has {len(response.text):,} characters")
        if (what := revealed_by(response)) is not None:
            failures.append(f"{name}: reveals {what}")
        if "server" in response.headers or "x-powered-by" in response.headers:
            failures.append(f"{name}: names its software")
        try:
            error = response.json()["error"]
            if set(error) != {"message", "type", "param", "code"} or not error["message"].isprintable():
                failures.append(f"{name}: {error}")
        except (ValueError, KeyError, TypeError):
            failures.append(f"{name}: not in OpenAI's form: {response.text[:200]!r}")
    assert not failures, f"{len(failures)} of {count} responses:\n" + "\n".join(failures)
    assert count > 150
    assert http.get("/health").status_code == 200


def test_the_check_finds_what_reveals() -> None:
    for text in ("Traceback (most recent call last)", "at 0x7f00aa12", "/etc/passwd", f"{sys.prefix}/lib", "127.0.0.1"):
        assert REVEALING.search(text), text
    assert not REVEALING.search("messages[0].content[1]: The image is too large: this server takes at most 32 MiB.")


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics", "/openapi.json", "/docs"])
def test_good_responses_reveal_nothing(http: httpx2.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code == 200
    assert "server" not in response.headers
    assert not re.search(rf"{re.escape(sys.prefix)}|{re.escape(str(Path(__file__).parents[2]))}|0x7f", response.text)


ELSEWHERE = dict.fromkeys(("host", "x-forwarded-host", "x-original-host", "origin", "referer"), "elsewhere.example")
"""Headers in which a client may claim to have asked another host."""


def test_no_response_names_the_host_that_a_client_claims(server: RunningServer, http: httpx2.Client) -> None:
    """A slash more or less is not redirected: the address would hold the header `Host`."""
    paths = {route.path for route in server.app.routes if getattr(route, "methods", None)}
    paths |= set(http.get("/openapi.json").json()["paths"])
    assert "/health" in paths
    assert CHAT in paths
    for path in sorted(f"{path}{end}".replace("{name}", "vila-tiny") for path in paths for end in ("", "/")):
        for method in ("GET", "POST"):
            response = http.request(method, path, headers=ELSEWHERE, follow_redirects=False)
            assert not response.is_redirect, (method, path)
            assert "elsewhere" not in f"{response.text}{response.headers}", (method, path)
    assert http.get("/health/").status_code == 404


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (1, 2), (2, 1), (1, 900), (900, 1), (2, 2), (3, 700), (13, 17), (448, 449), (999, 3)]
)
def test_every_shape_is_answered(http: httpx2.Client, width: int, height: int) -> None:
    asked = body(messages=[user(image(uri(encoded("PNG", width, height))), "What is in the picture?")])
    response = http.post(CHAT, json=asked)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(("frames", "width", "height"), [(1, 16, 16), (2, 2, 2), (30, 16, 400), (3, 400, 16)])
def test_every_shape_of_a_video_is_answered(http: httpx2.Client, frames: int, width: int, height: int) -> None:
    asked = body(messages=[user(clip(uri(video(frames, width, height), "video/mp4")), "What is in the video?")])
    response = http.post(CHAT, json=asked)
    assert response.status_code == 200, response.text


def test_an_error_names_the_place_in_the_request(http: httpx2.Client) -> None:
    good = image(uri(encoded()))
    asked = body(messages=[user("Hi"), {"role": "assistant", "content": "Hi"}, user(good, "and", image("/etc/passwd"))])
    error = http.post(CHAT, json=asked).json()["error"]
    assert error["param"] == "messages[2].content[2]"
    assert error["code"] == "invalid_media"
    assert error["message"] == (
        "messages[2].content[2]: The image must be given as a URI of the form 'data:image/png;base64,…'. Its "
        "base64 must be complete, and its type one of image/png, image/jpeg, image/jpg, image/webp, image/gif, "
        "image/bmp, image/tiff, image/avif, image/heic, image/heif, image/x-portable-pixmap."
    )


def test_answers_about_media_are_those_of_vila_core(server: RunningServer, http: httpx2.Client) -> None:
    """Decoding in another process changes nothing."""
    from vila_core import Image, Video

    model = model_of(server.app)
    for kind, own, content, media_type in (
        (image, Image, encoded("JPEG", 300, 200), "image/jpeg"),
        (clip, Video, video(20), "video/mp4"),
    ):
        asked = body(messages=[user(kind(uri(content, media_type)), "What is it?")], temperature=0, max_tokens=16)
        answer = http.post(CHAT, json=asked).json()["choices"][0]["message"]["content"]
        assert answer == model.generate([own(content), "What is it?"], max_new_tokens=16)


def test_the_tests_that_the_documentation_names_exist() -> None:
    root = Path(__file__).parents[2]
    names = set(re.findall(r"`(test_\w+)`", (root / "docs" / "serving-safety.md").read_text("utf-8")))
    files = [file for folder in ("serve", "core") for file in (root / "tests" / folder).glob("test_*.py")]
    defined = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)}
    assert len(names) > 20
    assert names - defined == set()


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_pixels_are_freed_before_the_answer_ends(
    path: str, server: RunningServer, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = server.app.state.service.media._held
    seen: list[int] = []
    submit = type(model_of(server.app)).submit

    def look(*arguments: Any, **options: Any) -> Any:
        seen.append(held.bytes)
        return submit(*arguments, **options)

    monkeypatch.setattr(type(model_of(server.app)), "submit", look)
    steps: list[int] = []
    scheduler = model_of(server.app).engine._scheduler
    answer = scheduler._answer

    def step(runner: Any) -> None:
        steps.append(held.bytes)
        answer(runner)

    monkeypatch.setattr(scheduler, "_answer", step)
    url = uri(encoded("PNG", 64, 64))
    if path == CHAT:
        asked = body(messages=[user(image(url), "What?")], max_tokens=8)
    else:
        parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What?"}]
        asked = {"model": "vila-tiny", "input": [{"role": "user", "content": parts}], "max_output_tokens": 16}
    assert http.post(path, json=asked).status_code == 200
    assert seen == [64 * 64 * 3], "the test counts the pixels"
    assert steps[-1] == 0
