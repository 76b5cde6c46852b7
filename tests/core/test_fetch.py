"""The fetcher against local servers that try to bypass each guard."""

import contextlib
import io
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from pathlib import Path

import PIL.Image
import pytest

import vila_core
import vila_core.media.fetch
from vila_core.errors import ConfigError, MediaError, MediaLimitError
from vila_core.media import Image, MediaLimits, Video
from vila_core.media.fetch import FetchPolicy, fetch, is_public
from vila_core.media.urls import parse_url, resolve_redirect, shorten_url

LOOPBACK = FetchPolicy(allow_http=True, allow_private=True, timeout_s=5, idle_timeout_s=2)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


def whole(body, head=OK):
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def redirect(location, status=302):
    return b"HTTP/1.1 %d Elsewhere\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, location.encode())


class Server:
    """Answers each path with raw bytes or a function, and records the requests."""

    def __init__(self, tls=None):
        self.answers = {}
        self.asked = []
        self.heads = []
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                connection = self.request
                with contextlib.suppress(OSError):
                    if tls:
                        connection = tls.wrap_socket(connection, server_side=True)
                    head = b""
                    while b"\r\n\r\n" not in head and (piece := connection.recv(4096)):
                        head += piece
                    path = head.split(b" ")[1].decode() if head else ""
                    outer.asked.append(path)
                    outer.heads.append(head.decode())
                    answer = outer.answers.get(
                        path.partition("?")[0], b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
                    )
                    if callable(answer):
                        answer(connection)
                    else:
                        connection.sendall(answer)
                    connection.close()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def refusal(url, policy=LOOPBACK, max_bytes=None):
    with pytest.raises(MediaError) as error:
        fetch(url, policy, max_bytes)
    return str(error.value)


def resolve_to(monkeypatch, *addresses):
    """Make every name resolve to these addresses; return the list of requested names."""
    asked = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_reads_a_body(server):
    server.answers["/a.png"] = whole(b"hello")
    with fetch(f"{server.base}/a.png?size=1#top", LOOPBACK) as body:
        assert body.read() == b"hello"
        body.seek(0)
    assert server.asked == ["/a.png?size=1"]


def test_bodies_without_a_length(server):
    server.answers["/chunked"] = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    server.answers["/open"] = OK + b"\r\nabcde"
    for path in ("/chunked", "/open"):
        assert fetch(server.base + path, LOOPBACK).read() == b"abcde"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_follows_a_few_redirects(server, status):
    server.answers["/1"] = redirect("/dir/2", status)
    server.answers["/dir/2"] = redirect("3?x=1", status)
    server.answers["/dir/3"] = redirect(f"{server.base}/4", status)
    server.answers["/4"] = whole(b"there")
    assert fetch(server.base + "/1", LOOPBACK).read() == b"there"
    assert server.asked == ["/1", "/dir/2", "/dir/3?x=1", "/4"]


def test_no_credentials_or_proxies_are_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    server.answers["/"] = whole(b"x")
    fetch(server.base, LOOPBACK)
    names = {line.partition(":")[0] for line in server.heads[0].strip().split("\r\n")[1:]}
    assert names == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_images_and_videos_from_urls(server):
    file = io.BytesIO()
    PIL.Image.new("RGB", (5, 4), (9, 8, 7)).save(file, "PNG")
    server.answers["/a.png"] = whole(file.getvalue())
    server.answers["/page"] = whole(b"<!doctype html><p>no</p>")
    limits = MediaLimits(fetch=LOOPBACK)
    assert Image(server.base + "/a.png").load(limits).getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(MediaError, match="web page"):
        Image(server.base + "/page").load(limits)
    with pytest.raises(MediaError, match="web page"):
        Video(server.base + "/page").load(4, limits=limits)
    with pytest.raises(MediaError, match="limit of 20"):
        Image(server.base + "/a.png").load(MediaLimits(fetch=LOOPBACK, max_image_bytes=20))
    with pytest.raises(MediaError, match="only https"):
        Image(server.base + "/a.png").load()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "gopher://example.org/",
        "https:/example.org/a.png",
        "https:///a.png",
        "https://",
        "//example.org/a.png",
        "https://user@example.org/a.png",
        "https://user:hunter2@example.org/a.png",
        "ftp://user:hunter2@example.org/a.png",
        "https://example.org\\@127.0.0.1/",
        "https://example.org\\.evil.org/",
        "https://example.org/a\\b",
        "https://example.org/a b",
        " https://example.org/a",
        "https://example.org/a\n",
        "https://exam\tple.org/a",
        "https://example.org/\x00",
        "https://example.org/a\r\nHost: x",
        "https://bücher.example/a.png",
        "https://ⓛocalhost/",
        "https://example。org/",
        "https://example.org:99999/",
        "https://example.org:0/",
        "https://example.org:8x/",
        "https://example.org:/a",
        "https://exa%6dple.org/",
        "https://example..org/",
        "https://-/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://1.2.3.4.5/",
        "https://" + "a" * 64 + ".org/",
        "https://example.org/" + "a" * 9000,
    ],
)
def test_refused_urls_open_no_connection(url, monkeypatch):
    asked = resolve_to(monkeypatch, "93.184.216.34")
    text = refusal(url, FetchPolicy())
    assert not asked, "refused before any name is looked up"
    assert "hunter2" not in text
    assert len(text) < 400


@pytest.mark.parametrize("user", ["user", "user:hunter2", "", ":", "a@b", "example.org:443", "%40"])
def test_user_names_are_refused_by_name(user):
    text = refusal(f"https://{user}@example.org/a.png", FetchPolicy())
    assert "contains a user name or password" in text
    assert "hunter2" not in text


def test_messages_contain_no_query_or_password():
    assert shorten_url("https://user:hunter2@example.org/a/b/c.png?token=secret") == "'https://example.org/…/c.png'"
    assert "secret" not in refusal("http://example.org/a.png?token=secret", FetchPolicy())


def test_allowed_hosts(monkeypatch):
    asked = resolve_to(monkeypatch, "127.0.0.1")
    policy = FetchPolicy(allowed_hosts=("Images.example.org", ".cdn.example"))
    for host in (
        "example.org",
        "evil-images.example.org",
        "images.example.org.evil.org",
        "cdn.example",
        "evilcdn.example",
        "127.0.0.1",
    ):
        assert "allowed" in refusal(f"https://{host}/a.png", policy)
    assert not asked
    for host in ("images.example.org", "IMAGES.example.org", "images.example.org.", "a.cdn.example"):
        assert "public" in refusal(f"https://{host}/a.png", policy)  # allowed by the list, refused by the address


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "168.63.129.16",
            "100.64.0.1",
        ),
        *(
            "192.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
        *(
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "2002:7f00:1::",
            "2001:0:4136:e378::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
        ),
        # The IANA special-purpose address registries, entry by entry (read in 2026)
        *("0.255.255.255", "100.127.255.255", "192.0.0.0", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.255"),
        *("192.31.196.1", "192.52.193.1", "192.88.99.0", "192.88.99.1", "192.175.48.1", "198.19.255.255"),
        *("64:ff9b::c000:9", "64:ff9b::6440:1", "64:ff9b:1:ffff::808:808", "100::ffff", "100:0:0:1::1"),
        *("2001::1", "2001:1::1", "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1"),
        *("2001:1ff:ffff::1", "2002::1", "2002:808:808::1", "2620:4f:8000::1", "3fff::1", "3fff:fff:ffff::1"),
        *("5f00::1", "4000::1", "e000::1", "fe00::1", "febf::1", "feff::1", "ff0e::1", "::8.8.8.8", "::ffff:0:808:808"),
        *("2606:4700:4700::1111%eth0", "8.8.8.8%1", "8.8.8", "8.8.8.8.", "0x8080808"),
    ],
)
def test_non_public_addresses(address, monkeypatch):
    assert not is_public(address)
    for mixed in ((address,), ("93.184.216.34", address), (address, "2606:2800:220:1::1")):
        resolve_to(monkeypatch, *mixed)
        text = refusal("https://example.org/a.png", FetchPolicy())
        assert "not on the public internet" in text
        assert address not in text


@pytest.mark.parametrize(
    "address",
    [
        *("93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"),
        *("192.0.1.1", "192.88.98.255", "192.88.100.0", "100.63.255.255", "100.128.0.0", "223.255.255.255", "1.0.0.0"),
        *("2001:200::1", "2001:db7:ffff::1", "2003::1", "3ffe::1", "3fff:1000::1", "2000::1"),
    ],
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254", "localhost", "LocalHost"]
)
def test_local_hosts_by_name_and_number(host, server):
    assert "public" in refusal(f"http://{host}:{server.port}/", FetchPolicy(allow_http=True))
    assert not server.asked


def test_a_name_is_resolved_once(server, monkeypatch):
    """A second answer of a malicious name server has no effect."""
    server.answers["/"] = whole(b"first")
    answers = iter(["127.0.0.1", "10.0.0.1", "10.0.0.2"])
    asked = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert fetch(f"http://rebind.example:{server.port}/", LOOPBACK).read() == b"first"
    assert asked == ["rebind.example"]
    assert f"Host: rebind.example:{server.port}" in server.heads[0]


def test_unknown_host(monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert "cannot be found" in refusal("https://nowhere.example/", FetchPolicy())


def test_name_server_timeout(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(120) and [])
    start = time.monotonic()
    assert "longer than" in refusal("https://slow.example/", FetchPolicy(timeout_s=0.3))
    assert time.monotonic() - start < 60
    release.set()


@pytest.mark.parametrize("inner", ["127.0.0.2", "[::1]", "169.254.169.254", "10.0.0.1"])
def test_redirect_to_a_local_address(inner, server, monkeypatch):
    """127.0.0.1 counts as public in this test; the redirect target does not."""
    monkeypatch.setattr(vila_core.media.fetch, "is_public", lambda address: address == "127.0.0.1")
    server.answers["/"] = redirect(f"http://{inner}:{server.port}/secret")
    text = refusal(f"http://127.0.0.1:{server.port}/", LOOPBACK.model_copy(update={"allow_private": False}))
    assert "public" in text
    assert "secret" not in text
    assert inner not in text
    assert server.asked == ["/"]


def test_redirect_loop(server):
    server.answers["/"] = redirect("/")
    assert "more than 3 redirects" in refusal(server.base + "/")
    assert len(server.asked) == 4
    assert "more than 0 redirects" in refusal(server.base + "/", LOOPBACK.model_copy(update={"max_redirects": 0}))


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://x/",
        "http://a@127.0.0.1/",
        "http://127.0.0.1\\@x/",
        "//",
        "http://ex ample/",
        "https://[",
        "javascript:1 2",
    ],
)
def test_refused_redirects(server, location):
    server.answers["/"] = redirect(location)
    assert "redirects" in refusal(server.base + "/")
    assert server.asked == ["/"]


@pytest.mark.parametrize(
    "location",
    ["file:/etc/passwd", "data:image/png;base64,AAAA", "http:127.0.0.1/b", "javascript:alert(1)", "a:b", "mailto:x@y"],
)
def test_a_redirect_with_another_scheme_is_no_path(server, location):
    server.answers["/"] = redirect(location)
    assert "redirects to a URL that is refused" in refusal(server.base + "/")
    assert server.asked == ["/"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("?b=2", "/dir/a?b=2"),
        ("b", "/dir/b"),
        ("./b:c/../d", "/dir/./b:c/../d"),
        ("/b?c=http://x/", "/b?c=http://x/"),
        ("b?c=http://x/", "/dir/b?c=http://x/"),
        ("b#top", "/dir/b"),
    ],
)
def test_relative_redirects(server, location, expected):
    server.answers["/dir/a"] = lambda connection: connection.sendall(
        redirect(location) if len(server.asked) == 1 else whole(b"there")
    )
    for path in ("/dir/b", "/b", "/dir/./b:c/../d"):
        server.answers[path] = whole(b"there")
    assert fetch(server.base + "/dir/a?a=1", LOOPBACK).read() == b"there"
    assert server.asked == ["/dir/a?a=1", expected]


@pytest.mark.parametrize("location", ["http://example.org/b", "http://example.org:443/b", "HTTP://EXAMPLE.ORG"])
def test_a_redirect_from_https_to_plain_http(location):
    """Even where plain http is allowed: who asks for https wants to know whom it talks to."""
    target = parse_url("https://example.org/a", LOOPBACK, "'x'")
    with pytest.raises(MediaError, match="from https to plain http"):
        resolve_redirect(target, location, LOOPBACK, "'x'")
    plain = parse_url("http://example.org/a", LOOPBACK, "'x'")
    assert resolve_redirect(plain, "https://example.org/b", LOOPBACK, "'x'").scheme == "https"
    assert resolve_redirect(target, "//example.org/b", LOOPBACK, "'x'").scheme == "https"


def test_allowed_ports(server, monkeypatch):
    asked = resolve_to(monkeypatch, "127.0.0.1")
    policy = FetchPolicy(allowed_ports=(443, 8443))
    for port in (":80", ":22", ":1", ":65535", ":444", ":08"):
        assert "its port is not allowed. Use 443 or 8443" in refusal(f"https://example.org{port}/", policy)
    assert not asked
    for port in ("", ":443", ":8443", ":0443"):
        assert "public" in refusal(f"https://example.org{port}/", policy)
    server.answers["/"] = redirect("http://example.org:22/")
    only = LOOPBACK.model_copy(update={"allowed_ports": (server.port,)})
    assert "redirects to a URL that is refused" in refusal(server.base + "/", only)


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("*.example.org", "'.example.org'"),
        ("https://example.org", "without scheme, port or path"),
        ("example.org:443", "without scheme, port or path"),
        ("example.org/a", "without scheme, port or path"),
        ("user@example.org", "without scheme, port or path"),
        ("bücher.example", "xn--"),
        ("", "expected a host"),
        (".", "expected a host"),
        ("..", "expected a host"),
        ("*", "expected a host"),
        ("a b", "expected a host"),
        ("example..org", "expected a host"),
        ("example.org\n", "expected a host"),
    ],
)
def test_allowed_hosts_that_would_match_nothing(host, advice):
    with pytest.raises(ConfigError, match=re.escape(advice)):
        FetchPolicy(allowed_hosts=("good.example", host))


def test_allowed_hosts_may_be_addresses_and_in_capitals(server):
    policy = LOOPBACK.model_copy(update={"allowed_hosts": FetchPolicy(allowed_hosts=("127.0.0.1",)).allowed_hosts})
    server.answers["/"] = whole(b"x")
    assert fetch(server.base + "/", policy).read() == b"x"
    assert FetchPolicy(allowed_hosts=("[::1]", "::1", "Example.ORG.")).allowed_hosts == ("::1", "::1", "example.org")


def test_redirect_without_a_target(server):
    server.answers["/"] = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"
    assert "redirects without a location" in refusal(server.base + "/")


def test_redirect_from_an_allowed_host_to_another(server, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    server.answers["/"] = redirect(f"http://other.example:{server.port}/x")
    policy = LOOPBACK.model_copy(update={"allowed_hosts": ("good.example",)})
    assert "redirects" in refusal(f"http://good.example:{server.port}/", policy)
    assert server.asked == ["/"]


def test_too_large_by_content_length(server):
    """The header is enough: the server sends nothing else."""
    refused = threading.Event()

    def answer(connection):
        connection.sendall(OK + b"Content-Length: 99999999999\r\n\r\n")
        refused.wait(60)

    server.answers["/"] = answer
    assert "99,999,999,999 bytes" in refusal(server.base + "/")
    refused.set()


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_without_content_length(server, chunked):
    total = 0

    def answer(connection):
        nonlocal total
        connection.sendall(OK + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        piece = b"x" * 65536
        for _ in range(1000):
            total += connection.send(b"10000\r\n" + piece + b"\r\n" if chunked else piece)

    server.answers["/"] = answer
    policy = LOOPBACK.model_copy(update={"max_bytes": 200_000})
    assert "more than the limit of 200,000" in refusal(server.base + "/", policy)
    assert "more than the limit of 1,000" in refusal(server.base + "/", policy, max_bytes=1000)
    assert total < 40_000_000


def test_body_at_the_limit(server):
    server.answers["/"] = whole(b"x" * 1000)
    assert len(fetch(server.base + "/", LOOPBACK, max_bytes=1000).read()) == 1000
    assert "limit of 999" in refusal(server.base + "/", max_bytes=999)


def drip(head):
    def answer(connection):
        connection.sendall(head)
        for _ in range(2000):
            connection.sendall(b"x")
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: 5000\r\n\r\n",
        OK + b"X-Slow: ",
        b"HTTP/1.1 2",
        OK + b"Transfer-Encoding: chunked\r\n\r\nfff",
    ],
)
def test_slow_body_hits_the_deadline(server, head):
    """Each byte arrives before the idle timeout, but the whole body does not before the deadline."""
    server.answers["/"] = drip(head)
    start = time.monotonic()
    refusal(server.base + "/", LOOPBACK.model_copy(update={"timeout_s": 0.6}))
    assert time.monotonic() - start < 50


def test_idle_timeout(server):
    server.answers["/"] = lambda connection: (
        connection.sendall(OK + b"Content-Length: 10\r\n\r\nabc"),
        connection.recv(1),
    )
    policy = LOOPBACK.model_copy(update={"idle_timeout_s": 0.3, "timeout_s": 120})
    start = time.monotonic()
    assert "stopped sending data" in refusal(server.base + "/", policy)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("head", [b"", OK + b"Content-Length: 10\r\n\r\nabc"])
def test_cancelling(server, head):
    server.answers["/"] = lambda connection: (connection.sendall(head), connection.recv(1))
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    start = time.monotonic()
    policy = LOOPBACK.model_copy(update={"timeout_s": 120, "idle_timeout_s": 120})
    with pytest.raises(MediaError, match="cancelled"):
        fetch(server.base + "/", policy, is_cancelled=cancelled.is_set)
    assert time.monotonic() - start < 60, "before the idle timeout"


def test_limits_have_names(server):
    server.answers["/large"] = whole(b"x" * 1000)
    server.answers["/endless"] = OK + b"\r\n" + b"x" * 1000
    server.answers["/slow"] = drip(OK + b"\r\n")
    server.answers["/silent"] = lambda connection: connection.recv(1)
    for path, changes, limit in (
        ("/large", {"max_bytes": 10}, "max_bytes"),
        ("/endless", {"max_bytes": 10}, "max_bytes"),
        ("/slow", {"timeout_s": 0.3}, "timeout_s"),
        ("/silent", {"idle_timeout_s": 0.3}, "idle_timeout_s"),
    ):
        with pytest.raises(MediaLimitError) as error:
            fetch(server.base + path, LOOPBACK.model_copy(update=changes))
        assert error.value.limit == limit


def test_incomplete_body(server):
    server.answers["/plain"] = OK + b"Content-Length: 10\r\n\r\nabc"
    server.answers["/chunked"] = OK + b"Transfer-Encoding: chunked\r\n\r\na\r\nabc"
    assert "3 of 10 bytes" in refusal(server.base + "/plain")
    assert "broke" in refusal(server.base + "/chunked")


@pytest.mark.parametrize("status", [204, 206, 401, 403, 404, 418, 500, 503])
def test_other_status_codes(server, status):
    server.answers["/"] = b"HTTP/1.1 %d No\r\nContent-Length: 6\r\n\r\nsecret" % status
    text = refusal(server.base + "/")
    assert str(status) in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\x01\x02",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        OK + b"X: " + b"y" * 70000 + b"\r\n\r\n",
        OK + b"A: b\r\n" * 200,
    ],
)
def test_not_http(server, answer):
    server.answers["/"] = answer
    text = refusal(server.base + "/")
    assert "not valid HTTP" in text
    assert "OpenSSH" not in text


def test_compressed_responses_are_refused(server):
    server.answers["/"] = whole(b"\x1f\x8b" + bytes(50), OK + b"Content-Encoding: gzip\r\n")
    assert "compressed" in refusal(server.base + "/")


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"GZIP", b"x-unknown"])
def test_every_content_encoding_but_identity_is_refused(server, coding):
    server.answers["/"] = whole(b"x" * 50, OK + b"Content-Encoding: identity\r\nContent-Encoding: " + coding + b"\r\n")
    assert "compressed" in refusal(server.base + "/")
    server.answers["/"] = whole(b"body", OK + b"Content-Encoding: Identity\r\n")
    assert fetch(server.base + "/", LOOPBACK).read() == b"body"


@pytest.mark.parametrize(
    "lengths",
    [
        [b"9" * 5000],
        [b"1" * 19],
        *([text] for text in (b"-4", b"+4", b"0x4", b"4_0", b"4.0", b"4 4", b"4,4", b"", b"four", b"1e3", b"\xb2")),
        [b"4", b"4"],
        [b"4", b"5"],
        [b"4", b"-1"],
    ],
    ids=lambda lengths: str(lengths)[:30],
)
def test_content_length_is_one_plain_number(server, lengths):
    """http.client ignores those it cannot read, and takes the first of several."""
    server.answers["/"] = OK + b"".join(b"Content-Length: %s\r\n" % length for length in lengths) + b"\r\nbody"
    assert "one valid Content-Length" in refusal(server.base + "/")


@pytest.mark.parametrize(
    "codings",
    [
        *(
            [text]
            for text in (b"gzip", b"gzip, chunked", b"identity", b"chunked, gzip", b"xchunked", b"", b"chunked;q")
        ),
        [b"chunked", b"chunked"],
        [b"gzip", b"chunked"],
    ],
)
def test_transfer_encodings_but_chunked_are_refused(server, codings):
    head = OK + b"".join(b"Transfer-Encoding: %s\r\n" % coding for coding in codings)
    server.answers["/"] = head + b"\r\n4\r\nbody\r\n0\r\n\r\n"
    assert "other than 'chunked'" in refusal(server.base + "/")


def test_a_length_beside_chunks_is_refused(server):
    server.answers["/"] = OK + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    assert "one valid Content-Length" in refusal(server.base + "/")


@pytest.mark.parametrize("size", [b"-4", b"zz", b"", b"f" * 70000, b"4 4"])
def test_wrong_chunk_sizes_are_refused(server, size):
    server.answers["/"] = OK + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nbody\r\n0\r\n\r\n"
    assert refusal(server.base + "/")


def test_connection_refused():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        assert "no connection" in refusal(f"http://127.0.0.1:{holder.getsockname()[1]}/")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for media.example."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=media.example", "-addext", "subjectAltName=DNS:media.example"]
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        *names,
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    names = []
    context.sni_callback = lambda connection, name, _: names.append(name)
    server = Server(context)
    server.names = names
    server.answers["/"] = whole(b"secure")
    yield server
    server.close()


def test_tls_verifies_the_host_name_at_the_resolved_address(secure_server, certificate, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    policy = LOOPBACK.model_copy(update={"ca_file": certificate / "cert.pem", "allow_http": False})
    assert fetch(f"https://media.example:{secure_server.port}/", policy).read() == b"secure"
    assert secure_server.names == ["media.example"]


def test_tls_refuses_wrong_names_and_unknown_issuers(secure_server, certificate, monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1")
    policy = LOOPBACK.model_copy(update={"ca_file": certificate / "cert.pem"})
    assert "certificate" in refusal(f"https://other.example:{secure_server.port}/", policy)
    assert "certificate" in refusal(f"https://media.example:{secure_server.port}/", LOOPBACK)
    assert "certificate" in refusal(f"https://127.0.0.1:{secure_server.port}/", policy)
    assert not secure_server.asked


def test_tls_to_a_plain_server(server):
    assert "TLS" in refusal(f"https://127.0.0.1:{server.port}/", LOOPBACK.model_copy(update={"idle_timeout_s": 0.5}))


def test_invalid_certificate_file(tmp_path, server):
    for path in (tmp_path / "none.pem", tmp_path / "text.pem"):
        if path.name == "text.pem":
            path.write_text("hello")
        assert "ca_file" in refusal(f"https://127.0.0.1:{server.port}/", LOOPBACK.model_copy(update={"ca_file": path}))


# network


def test_no_other_module_opens_urls():
    """Another way to the network would bypass the guards of the fetcher."""
    ways = re.compile(
        r"urllib\.request|http\.client|\brequests\.(?:get|post|request|Session)|import requests|from requests|httpx|"
        r"aiohttp|urlopen|create_connection"
    )
    sources = Path(vila_core.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if ways.search(path.read_text("utf-8"))] == ["fetch.py"]
