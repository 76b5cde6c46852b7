"""The API key: needed on every route but /health, compared in constant time, and never shown."""

import base64
from collections.abc import Callable

import httpx2
import openai
import pytest
from tests.running_server import RunningServer
from tests.serve.conftest import user

from vila_core.errors import ConfigError
from vila_serve.settings import ServeSettings

KEY = "sk-vila-0123456789"


@pytest.fixture
def guarded(serve_with: Callable[..., RunningServer]) -> RunningServer:
    return serve_with(api_key=KEY)


def test_every_route_but_health_needs_the_key(guarded: RunningServer):
    """The routes are read from the application, so that a new one is tested too."""
    paths = {(method, route.path) for route in guarded.app.routes for method in getattr(route, "methods", None) or ()}
    document = httpx2.get(f"{guarded.url}/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    paths |= {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    paths |= {("GET", "/nothing"), ("POST", "/v1/files"), ("GET", "/"), ("GET", "/health/"), ("GET", "//health")}
    assert len(paths) > 10
    for method, path in sorted(paths):
        response = httpx2.request(method, guarded.url + path.replace("{name}", "vila-tiny").replace(":path", ""))
        if path == "/health":
            assert response.status_code == 200
        else:
            assert response.status_code == 401, (method, path)
            assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {KEY}",
        f"bearer  {KEY}",
        "Basic " + base64.b64encode(f"anyone:{KEY}".encode()).decode(),
    ],
)
def test_the_key_lets_in(guarded: RunningServer, authorization: str):
    assert httpx2.get(f"{guarded.url}/v1/models", headers={"authorization": authorization}).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        KEY,
        f"Token {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY} {KEY}",
        f"Bearer x,{KEY}",
        "Bearer \xe9\xff",
        "Bearer " + "x" * 10_000,
        "Basic " + base64.b64encode(f"{KEY}:wrong".encode()).decode(),
        "Basic " + base64.b64encode(KEY.encode()).decode(),
        "Basic !!!!",
        "Basic \xff",
        f"Basic {KEY}",
    ],
)
def test_other_keys_do_not(guarded: RunningServer, authorization: str):
    response = httpx2.get(f"{guarded.url}/v1/models", headers={"authorization": authorization.encode("latin-1")})
    assert response.status_code == 401
    assert KEY not in response.text
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_browser_is_asked_for_a_password(guarded: RunningServer):
    response = httpx2.get(f"{guarded.url}/docs", headers={"accept": "text/html,*/*"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic ")


def test_the_openai_package_sends_the_key(guarded: RunningServer):
    asked = {"model": "vila-tiny", "messages": [user("Hello")], "max_tokens": 2}
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.chat.completions.create(**asked).choices
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="Incorrect API key"),
    ):
        client.chat.completions.create(**asked)


def test_cors_is_off_unless_an_origin_is_named(server: RunningServer, serve_with: Callable[..., RunningServer]):
    preflight = {"origin": "https://example.org", "access-control-request-method": "POST"}
    closed = httpx2.options(f"{server.url}/v1/chat/completions", headers=preflight)
    assert "access-control-allow-origin" not in closed.headers
    opened = serve_with(cors_origins="https://example.org", api_key=KEY)
    allowed = httpx2.options(f"{opened.url}/v1/chat/completions", headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    refused = httpx2.post(f"{opened.url}/v1/chat/completions", json={}, headers={"origin": "https://example.org"})
    assert refused.status_code == 401, "the page can read why"
    assert refused.headers["access-control-allow-origin"] == "https://example.org"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    assert "retry-after" in refused.headers["access-control-expose-headers"]
    other = httpx2.options(f"{opened.url}/v1/chat/completions", headers={**preflight, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("key", ["", "  ", " key", "key\n", "kéy", "a\x00b"])
def test_keys_that_no_client_can_send(key: str):
    with pytest.raises(ConfigError, match="--api-key") as caught:
        ServeSettings.read({"api_key": key})
    assert not key.strip() or repr(key)[1:-1] not in str(caught.value)


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VILA_API_KEY", KEY)
    assert KEY not in repr(ServeSettings.read())
    monkeypatch.setenv("VILA_API_KEY", "")
    with pytest.raises(ConfigError, match="VILA_API_KEY is empty"):
        ServeSettings.read()
