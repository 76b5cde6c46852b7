"""What a client can do with the routes of the page, whatever it sends. No browser is needed."""

import base64
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from tests.page.conftest import API, MEDIA, PageClient, serving, streamed
from tests.running_server import RunningServer

from vila_serve.page import page as page_module
from vila_serve.page import routes
from vila_serve.page.parts import EXAMPLES
from vila_serve.page.parts import QUESTIONS as QUESTIONS_OF_THE_PAGE

KEY = "a-key-that-nobody-guesses"
QUESTIONS = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))


def answer_of(event: dict[str, Any]) -> tuple[str, str]:
    """Return the text of the answer and the status line of a call."""
    assert event["success"], event
    conversation, _, status, _ = event["output"]["data"]
    return conversation[-1]["content"][0]["text"], status


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: "+".join(case["media"]))
def test_the_page_answers_as_the_library(page: PageClient, case: dict[str, Any]):
    paths = page.upload(*((name, (MEDIA / name).read_bytes()) for name in case["media"])).json()
    assert page.ask(case["text"], paths).status_code == 200
    texts, status, seen = streamed(page)
    assert texts[-1] == case["answer"]
    assert all(texts[-1].startswith(text) for text in texts)
    assert "Tokens: prompt " in status
    assert "first token after" in status
    assert seen.count('<div class="seen-medium">') == len(case["media"])
    assert "data:image/webp;base64," in seen


def test_a_schema_is_followed_and_a_bad_one_is_explained(page: PageClient):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    page.ask("How many?", schema=json.dumps(schema))
    texts, _, _ = streamed(page)
    assert json.loads(texts[-1])["n"] in (1, 2)
    for bad in ("{", '{"type": 5}', "[1]"):
        page.ask("How many?", schema=bad)
        texts, status, _ = streamed(page)
        assert not texts
        assert 'class="error"' in status
        assert "json_schema" in status or "JSON" in status


@pytest.mark.parametrize(
    "choices",
    [
        {"max_tokens": 10**9},
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": "<script>"},
        {"seed": "1e300"},
        {"seed": "9" * 5000},
        {"seed": 7.5},
        {"frames": 10**9},
        {"frames": -3},
        {"max_tokens": None},
        {"schema": 7},
        {"system_prompt": ["x"]},
    ],
    ids=str,
)
def test_settings_out_of_range_neither_hang_nor_leak(page: PageClient, choices: dict[str, Any]):
    response = page.ask("Hello", **choices)
    if response.status_code == 200:
        shown = "".join(json.dumps(event) for event in page.events())
        assert "Traceback" not in shown
        assert "/site-packages/" not in shown
    assert page.http.get("/health").status_code == 200


def test_the_seed_repeats_an_answer(page: PageClient):
    def ask(seed: int | None) -> str:
        page.ask("Describe the picture.", temperature=1.5, seed=None if seed is None else str(seed))
        return streamed(page)[0][-1]

    assert ask(3) == ask(3)
    assert len({ask(None) for _ in range(4)}) > 1


def test_an_abandoned_answer_is_cancelled(page: PageClient, server: RunningServer):
    schema = json.dumps({"type": "array", "items": {"enum": ["a"]}, "minItems": 900})
    page.ask("Hello", schema=schema, max_tokens=1500)
    for event in page.events():
        if event["msg"] == "process_generating" and server.requests:
            break
    deadline = time.monotonic() + 120
    while server.requests and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.requests == 0
    assert server.app.state.service.admission.requests == 0


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.png"
    path.write_bytes(b"the secret")
    return path


def variants(path: Path, uploaded: str) -> list[str]:
    """Return ways to write a path that might be taken for one inside the folder of uploads."""
    folder = Path(uploaded).parent
    relative = os.path.relpath(path, folder)
    return [
        str(path),
        f"/{path}",
        f"{folder}/{relative}",
        f"{folder}/./{relative}",
        f"{uploaded}/../{relative}",
        f"file://{path}",
        f"file:{path}",
        quote(str(path), safe=""),
        quote(quote(str(path), safe=""), safe=""),
        f"{folder}/{quote(relative, safe='')}",
        f"{folder}{path}\0.png",
        f"http://127.0.0.1/{path}",
        f"{folder}/{relative}".replace("/", "\\"),
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/stdin",
        str(Path(page_module.__file__)),
        str(folder.parent.parent),
        "",
        ".",
        "~/.ssh/id_rsa",
    ]


def test_only_uploaded_files_can_be_read(page: PageClient, secret: Path):
    (uploaded,) = page.upload(("scene.png", (MEDIA / "scene.png").read_bytes())).json()
    shown = page.http.get(f"{API}/file={uploaded}")
    assert shown.content == (MEDIA / "scene.png").read_bytes()
    assert "sandbox" in shown.headers["content-security-policy"]
    assert shown.headers["x-content-type-options"] == "nosniff"
    for path in variants(secret, uploaded):
        for written in {path.replace("\0", "%00"), quote(path, safe="/"), quote(path, safe="")}:
            answer = page.http.get(f"{API}/file={written}", follow_redirects=True)
            assert answer.status_code in (400, 403, 404), written
            assert b"secret" not in answer.content.replace(str(secret).encode(), b"")


def test_links_out_of_the_folder_of_uploads_are_not_followed(page: PageClient, secret: Path):
    (uploaded,) = page.upload(("scene.png", (MEDIA / "scene.png").read_bytes())).json()
    link = Path(uploaded).with_name("link.png")
    link.symlink_to(secret)
    assert page.http.get(f"{API}/file={link}").status_code == 404
    assert page.ask("What is it?", [str(link)]).status_code == 400


def test_a_question_can_name_uploaded_files_only(page: PageClient, secret: Path):
    (uploaded,) = page.upload(("scene.png", (MEDIA / "scene.png").read_bytes())).json()
    for path in [*variants(secret, uploaded), "https://example.org/a.png", "http://169.254.169.254/x.png"]:
        if path == "":
            continue
        answer = page.ask("What is in the picture?", [path])
        assert answer.status_code == 400, path
        assert "not uploaded" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "component", "component": "file", "value": "/etc/passwd", "constructor_args": {}, "props": {}},
        {"component": "image", "value": "/etc/passwd", "constructor_args": {"value": "/etc/passwd"}, "props": {}},
        {"type": "file", "file": {"path": ["/etc/passwd"]}},
        {"type": "file", "file": {"path": {"path": "/etc/passwd"}}},
        {"type": "text", "text": "x", "constructor_args": {}},
    ],
    ids=str,
)
def test_gradio_builds_nothing_from_a_request(page: PageClient, part: dict[str, Any]):
    history = [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]
    answer = page.join(page.answering_function(), [history, "en", None, 8, 0, 1, None, 8, None])
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.png", b"<script>alert(1)</script>"),
        ("bomb.png", b"\x89PNG\r\n\x1a\n" + bytes(20)),
        ("empty.png", b""),
        ("text.png", b"hello"),
        ("noise.mp4", bytes(range(256)) * 40),
        ("song.wav", b"RIFF0000WAVE"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        ("page.html", b"<script>alert(1)</script>"),
        ("noending", b"\x89PNG"),
        ("a\u202egnp.exe", b"MZ"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_other_kinds_are_refused_and_never_shown_as_pages(page: PageClient, name: str, content: bytes):
    (path,) = page.upload((name, content)).json()
    shown = page.http.get(f"{API}/file={quote(path)}")
    assert "html" not in shown.headers.get("content-type", "")
    assert "svg" not in shown.headers.get("content-type", "")
    page.ask("What is it?", [path])
    texts, status, _ = streamed(page)
    assert not texts
    assert 'class="error"' in status
    assert str(Path(path).parent) not in status


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "a/b/c.png", "con.png", "x" * 300 + ".png"]
)
def test_names_of_uploads_cannot_leave_the_folder(page: PageClient, name: str):
    answer = page.upload((name, b"content"))
    folder = Path(page.upload(("a.png", b"a")).json()[0]).parent.parent
    if answer.status_code == 200:
        (path,) = answer.json()
        assert Path(path).resolve().is_relative_to(folder)
    assert page.http.get("/health").status_code == 200


def test_uploads_are_limited(serve_with: Callable[..., RunningServer]):
    page = PageClient(serve_with(max_request_bytes=1_000_000).url)
    assert page.upload(("a.png", bytes(700_000))).status_code == 200
    assert page.upload(("a.png", bytes(900_000))).status_code == 413
    assert page.upload(*((f"{number}.png", bytes(300_000)) for number in range(4))).status_code == 413

    def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        while True:
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with suppress(httpx2.TransportError):  # the server closes the connection while the client is still sending
        assert page.http.post(f"{API}/upload", content=endless(), headers=headers).status_code == 413
    assert page.http.get("/health").status_code == 200


def test_the_disk_does_not_fill_up(serve_with: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_module, "MAX_STORED_BYTES", 0)
    page = PageClient(serve_with(max_request_bytes=400_000).url)
    statuses = [page.upload((f"{number}.png", os.urandom(250_000))).status_code for number in range(6)]
    assert statuses[0] == 200
    assert statuses[-1] == 507


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", f"{API}/{path}") for path in ("info", "openapi.json", "runs", "dev/reload", "user", "token")],
        *[("GET", path) for path in ("/monitoring", "/monitoring/summary", "/login", "/logout", "/robots.txt")],
        ("GET", f"{API}/proxy=https://example.org/"),
        ("GET", f"{API}/file=https://example.org/"),
        ("GET", f"{API}/file/etc/passwd"),
        ("GET", f"{API}/custom_component/1/client/component/index.js"),
        ("GET", "/static/../../../../etc/passwd"),
        ("GET", "/assets/%2e%2e/%2e%2e/routes.py"),
        ("GET", "/svelte/..%2f..%2froutes.py"),
        ("GET", f"{API}/deep_link"),
        ("POST", f"{API}/component_server"),
        ("POST", f"{API}/run/predict"),
        ("POST", f"{API}/call/predict"),
        ("POST", f"{API}/api/predict"),
        ("POST", f"{API}/process_recording"),
        ("POST", f"{API}/stream/x"),
        ("POST", f"{API}/vibe-edit"),
        ("POST", "/login"),
        ("PUT", "/"),
        ("DELETE", f"{API}/upload"),
        ("GET", "/nowhere"),
    ],
)
def test_other_routes_of_gradio_do_not_exist(page: PageClient, method: str, path: str):
    answer = page.http.request(method, path)
    assert answer.status_code in (404, 405)
    assert set(answer.json()) == {"error"}


def test_the_routes_of_the_api_come_first(page: PageClient):
    assert page.http.get("/v1/models").json()["data"][0]["id"] == "vila-tiny"
    assert page.http.get("/v1/chat/completions").status_code == 405
    assert page.http.get("/docs").status_code == 200


@pytest.mark.parametrize("path", ["/health/", "/docs/", "/v1/models/", "/config/", "/theme.css/", f"{API}/upload/"])
def test_a_slash_at_the_end_is_not_redirected(page: PageClient, path: str):
    answer = page.http.get(path, headers={"host": "elsewhere.example"}, follow_redirects=False)
    assert not answer.is_redirect
    assert "location" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/config", "/config/"])
def test_the_page_knows_its_address_from_the_host_alone(page: PageClient, path: str):
    """Behind a proxy it must; so nobody may keep a page that was made for another host."""
    for name in ("host", "x-forwarded-host"):
        answer = page.http.get(path, headers={name: "chat.example:8443"})
        assert "http://chat.example:8443/gradio_api/file=" in answer.text
        assert answer.headers["cache-control"] == "no-store"
    answer = page.http.get(path, headers={"x-gradio-server": "javascript:alert(1)"})
    assert answer.status_code == 200
    assert "javascript:alert" not in answer.text
    for host in ("<script>", "a b", "a/b", "user@a", "[", "[::1", "a:b", "a:123456", "javascript:alert(1)"):
        assert page.http.get(path, headers={"x-forwarded-host": host}).status_code == 400, host


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", f"{API}/upload", f"{API}/queue/join", f"{API}/cancel"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic OnVzZXI="}, {"cookie": f"access-token={KEY}"}],
    ids=["none", "wrong", "basic", "cookie"],
)
def test_the_page_needs_the_key(keyed: RunningServer, path: str, headers: dict[str, str]):
    method = "POST" if path.startswith(API) else "GET"
    with httpx2.Client(base_url=keyed.url) as http:
        assert http.request(method, path, headers=headers).status_code == 401


@pytest.fixture(scope="session")
def keyed(model: Any) -> Any:
    with serving(model, api_key=KEY) as started:
        yield started


def test_a_browser_gets_in_with_the_key_as_password(keyed: RunningServer):
    with httpx2.Client(base_url=keyed.url) as http:
        asked = http.get("/", headers={"accept": "text/html"})
        assert asked.headers["www-authenticate"].startswith("Basic ")
    password = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    page = PageClient(keyed.url, headers={"authorization": f"Basic {password}"})
    assert page.http.get("/").status_code == 200
    page.ask("Hello")
    assert streamed(page)[0]


@pytest.mark.parametrize("path", [f"{API}/upload", f"{API}/queue/join", f"{API}/cancel", f"{API}/reset"])
def test_other_sites_cannot_act_in_the_users_name(page: PageClient, path: str):
    for site in ("cross-site", "same-site"):
        assert page.http.post(path, headers={"sec-fetch-site": site}, content=b"{}").status_code == 403


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b'"' + b"x" * (routes.MAX_EVENT_BYTES + 1)]
)
def test_bodies_that_are_not_requests_are_refused(page: PageClient, body: bytes):
    answer = page.http.post(f"{API}/queue/join", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413)


def test_nothing_comes_from_other_servers(page: PageClient):
    answer = page.http.get("/")
    policy = dict(
        part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";") if part
    )
    assert policy["default-src"] == "'self'"
    assert "http" not in answer.headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"


def test_the_page_can_be_left_out(serve_with: Callable[..., RunningServer]):
    with httpx2.Client(base_url=serve_with(page=False).url) as http:
        assert http.get("/").status_code == 404


def test_the_examples_are_those_of_the_project():
    for _, names in QUESTIONS_OF_THE_PAGE:
        for name in names:
            assert (EXAMPLES / name).read_bytes() == (MEDIA / name).read_bytes()
