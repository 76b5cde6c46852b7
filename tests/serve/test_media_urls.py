"""URLs in requests: where the server's door fetches from, and what clients learn of it."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.raw_server import OK, Server, drip, redirect, resolve_to, whole
from tests.serve.media_files import encoded, picture, png_bomb, video

import vila_serve
from vila_core.errors import MediaError
from vila_serve.media import DecodeLimits, MediaDoor, server_limits

FETCH_FAILED = "The image could not be fetched from its URL. Check the URL, or send the image itself as a data: URI."
REFUSED = "The URL of the image is refused: only plain https URLs of allowed hosts are fetched."


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def door_for(**changes: object) -> MediaDoor:
    """A door that fetches from allowed.example, which the tests let resolve to 127.0.0.1 and count as public."""
    limits = server_limits(["allowed.example", ".cdn.example"])
    assert limits.fetch is not None
    policy = limits.fetch.model_copy(update={"allow_http": True, "allowed_ports": None, "timeout_s": 5.0, **changes})
    return MediaDoor(limits.model_copy(update={"fetch": policy}), 8, decoding=DecodeLimits(workers=1))


@pytest.fixture(scope="module")
def door() -> Iterator[MediaDoor]:
    door = door_for(allow_private=True)
    yield door
    door.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return resolve_to(monkeypatch, "127.0.0.1")


def refusal(door: MediaDoor, url: str) -> str:
    with pytest.raises(MediaError) as caught:
        asyncio.run(door.open_image(url))
    return str(caught.value)


def url_of(server: Server, path: str = "/a.png", host: str = "allowed.example") -> str:
    return f"http://{host}:{server.port}{path}"


def test_the_policy_of_a_server() -> None:
    assert server_limits().fetch is None
    policy = server_limits(["example.org"]).fetch
    assert policy is not None
    assert policy.allowed_hosts == ("example.org",)
    assert policy.allowed_ports == (443,)
    assert not policy.allow_http
    assert not policy.allow_private
    assert policy.max_redirects <= 3
    assert policy.timeout_s <= 30
    assert policy.max_bytes <= 128 * 1024 * 1024


def test_media_of_allowed_hosts(door: MediaDoor, server: Server, names: list[str]) -> None:
    server.answers["/a.png"] = whole(encoded())
    server.answers["/a.mp4"] = whole(video())
    image = asyncio.run(door.open_image(url_of(server)))
    assert np.array_equal(np.asarray(image.load()), np.asarray(picture()))
    asyncio.run(door.open_image(url_of(server, host="a.cdn.example")))
    found = asyncio.run(door.open_video(url_of(server, "/a.mp4"), frames=4))
    assert len(found.load(9).frames) == 4
    assert names == ["allowed.example", "a.cdn.example", "allowed.example"]


@pytest.mark.parametrize(
    "host",
    ["example.org", "cdn.example", "evilallowed.example", "allowed.example.evil.org", "127.0.0.1", "[::1]", "localhost",
     "2130706433", "0x7f000001", "017700000001", "127.1", "0", "[::ffff:127.0.0.1]", "allowed.example@127.0.0.1",
     "127.0.0.1\\@allowed.example", "127.0.0.1#@allowed.example", "127.0.0.1?@allowed.example", "allowed.example\\",
     "allowed.example%2f", "allowed.example%00", "al%6cowed.example", "allowed。example", "ａllowed.example",
     "[fe80::1%25eth0]",
     "allowed.example..", ".allowed.example", "allowed.example:80:80", "allowed.example:0", "allowed.example:65536",
     "allowed.example:٣", "allowed.example:", "allowed.example:443x", "allowed.example,example.org",
     "allowed.example;example.org", "allowed.example example.org", "allowed.example\texample.org", "allowed\n.example",
     "\u202eallowed.example", "xn--llowed-.example", "allowed.example\x00.evil.org", ""],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_other_hosts_are_refused_before_anything_is_looked_up(
    door: MediaDoor, host: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve_to(monkeypatch, "127.0.0.1")
    assert refusal(door, f"{scheme}://{host}/a.png") == REFUSED
    assert not asked


def test_plain_http_and_other_ports_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_to(monkeypatch, "93.184.216.34")
    door = MediaDoor(server_limits(["allowed.example"]), 8, decoding=DecodeLimits(workers=1))
    for url in (
        "http://allowed.example/a.png",
        "https://allowed.example:80/a.png",
        "https://allowed.example:22/a.png",
        "https://allowed.example:8443/a.png",
        "https://allowed.example:0443443/a.png",
    ):
        assert refusal(door, url) == REFUSED, url
    assert not asked
    door.close()


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "0.0.0.0",
     "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
     "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2001:0:7f00:1::", "2001:db8::1"],
)  # fmt: skip
def test_allowed_names_of_inner_addresses(
    address: str, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A name server may point an allowed name anywhere."""
    resolve_to(monkeypatch, address)
    door = door_for()
    message = refusal(door, url_of(server))
    assert message == FETCH_FAILED
    assert "not on the public internet" in caplog.text
    assert not server.asked
    door.close()


def test_a_name_that_changes_its_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one that is contacted: a second answer has no effect."""
    monkeypatch.setattr("vila_core.media.fetch.is_public", lambda address: address == "127.0.0.1")
    server.answers["/a.png"] = whole(encoded())
    answers = iter(["127.0.0.1"] + ["10.0.0.1"] * 9)

    def look_up(host: str, port: int, *_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    door = door_for()
    assert asyncio.run(door.open_image(url_of(server))).size == (8, 6)
    assert next(answers) == "10.0.0.1", "resolved once"
    door.close()


def test_proxies_of_the_environment_are_not_used(
    door: MediaDoor, server: Server, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers["/a.png"] = whole(encoded())
    asyncio.run(door.open_image(url_of(server)))


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://localhost/",
     "http://evil.example/", "file:///etc/passwd", "file:/etc/passwd", "data:image/png;base64,AAAA",
     "ftp://allowed.example/",
     "gopher://allowed.example/", "javascript:alert(1)", "//evil.example/a.png", "http://allowed.example@evil.example/",
     "http://evil.example\\@allowed.example/", "http://allowed.example:99999/",
     "\\\\evil.example\\a", "http:/evil.example",
     "http:evil.example", "/a.png", "?", "/\\evil.example/b.png"],
)  # fmt: skip
def test_redirects_are_checked(door: MediaDoor, server: Server, names: list[str], location: str) -> None:
    server.answers["/a.png"] = redirect(location)
    assert refusal(door, url_of(server)) == FETCH_FAILED
    assert set(names) == {"allowed.example"}
    assert len(server.asked) <= 3


def test_a_redirect_to_an_allowed_host(door: MediaDoor, server: Server, names: list[str]) -> None:
    server.answers["/a.png"] = redirect(url_of(server, "/b.png", "b.cdn.example"))
    server.answers["/b.png"] = whole(encoded())
    assert asyncio.run(door.open_image(url_of(server))).size == (8, 6)
    assert names == ["allowed.example", "b.cdn.example"]


def test_large_bodies_end_early(server: Server, names: list[str]) -> None:
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(bytes(65536))
            sent += 65536

    server.answers["/endless"] = endless
    server.answers["/chunked"] = lambda connection: (
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        [connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n") for _ in range(1000)],
    )
    server.answers["/announced"] = OK + b"Content-Length: 99999999999\r\n\r\n"
    server.answers["/gzip"] = whole(b"\x1f\x8b" + bytes(100), OK + b"Content-Encoding: gzip\r\n")
    server.answers["/lies"] = OK + b"Content-Length: 5\r\n\r\n" + encoded()
    server.answers["/short"] = OK + b"Content-Length: 500000\r\n\r\n" + encoded()
    door = door_for(allow_private=True, max_bytes=1_000_000)
    for path in ("/endless", "/chunked", "/announced"):
        assert "too large" in refusal(door, url_of(server, path))
    assert sent < 20_000_000
    assert refusal(door, url_of(server, "/gzip")) == FETCH_FAILED
    assert refusal(door, url_of(server, "/short")) == FETCH_FAILED
    assert "cannot be read" in refusal(door, url_of(server, "/lies"))
    door.close()


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 2", OK + b"X-Slow: ", OK + b"Content-Length: 5000\r\n\r\n"])
def test_slow_servers(server: Server, names: list[str], head: bytes) -> None:
    server.answers["/a.png"] = drip(head)
    door = door_for(allow_private=True, timeout_s=0.6)
    started = time.monotonic()
    assert refusal(door, url_of(server)) == FETCH_FAILED
    assert time.monotonic() - started < 50
    door.close()


def test_silence_and_cancelling(server: Server, names: list[str]) -> None:
    gone = threading.Event()

    def wait(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 5000\r\n\r\nx")
        connection.recv(1)  # returns when the fetcher closes the connection
        gone.set()

    server.answers["/a.png"] = wait
    door = door_for(allow_private=True, timeout_s=60.0, idle_timeout_s=60.0)

    async def cancel() -> None:
        task = asyncio.create_task(door.open_image(url_of(server)))
        while not server.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert gone.wait(60)
    door.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (whole(b"<!doctype html><p>secret"), "cannot be read"),
        (whole(png_bomb(60_000, 60_000)), "too many pixels"),
        (whole(video()), "cannot be read"),
        (whole(b"{}"), "cannot be read"),
        (b"HTTP/1.1 404 secret\r\nContent-Length: 6\r\n\r\nsecret", "could not be fetched"),
        (b"HTTP/1.1 500 secret\r\n\r\n", "could not be fetched"),
        (b"SSH-2.0-secret\r\n", "could not be fetched"),
        (b"", "could not be fetched"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_answers_that_are_no_image(
    door: MediaDoor, server: Server, names: list[str], answer: bytes, words: str
) -> None:
    server.answers["/a.png"] = answer
    message = refusal(door, url_of(server))
    assert words in message
    assert "secret" not in message
    assert str(server.port) not in message


def test_all_failures_of_a_fetch_look_alike(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client must not learn from the message what is on the server's network."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    door = door_for(allow_private=True)
    resolve_to(monkeypatch, "127.0.0.1")
    messages = {refusal(door, f"http://allowed.example:{port}/"), refusal(door, url_of(server, "/missing"))}
    messages.add(refusal(door, f"https://allowed.example:{server.port}/"))

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    messages.add(refusal(door, url_of(server)))
    assert messages == {FETCH_FAILED}
    door.close()


def test_the_server_has_no_other_way_to_urls() -> None:
    """Another fetcher would bypass the guards of `vila_core.media.fetch`."""
    ways = re.compile(r"urllib\.request|http\.client|import requests|httpx|aiohttp|urlopen|create_connection")
    root = Path(vila_serve.__file__).parent
    sources = [path for folder in ("api", "media") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 10
    assert not [path.name for path in sources if ways.search(path.read_text("utf-8"))]
    fetchers = [path.name for path in root.rglob("*.py") if "media.fetch import" in path.read_text("utf-8")]
    assert fetchers == ["door.py"]
