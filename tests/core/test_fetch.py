"""The fetcher of media: URLs, hosts and redirects, with local servers that try to bypass each guard."""

import io
import itertools
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from tests.raw_server import LOOPBACK, OK, redirect, refusal, resolve_to, whole

import vila_core
import vila_core.media.fetch
from vila_core.errors import ConfigError, MediaError, SettingError
from vila_core.media import Image, MediaLimits, Video
from vila_core.media.fetch import FetchPolicy, fetch, is_public
from vila_core.media.urls import parse_url, resolve_redirect, shorten_url


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


@pytest.mark.parametrize("ports", [itertools.count(1), itertools.repeat(443), "443"])
def test_ports_are_a_list(ports: Any):
    with pytest.raises(SettingError, match="allowed_ports: expected a list"):
        FetchPolicy(allowed_ports=ports)


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


def test_no_other_module_opens_urls():
    """Another way to the network would bypass the guards of the fetcher."""
    ways = re.compile(
        r"urllib\.request|http\.client|\brequests\.(?:get|post|request|Session)|import requests|from requests|httpx|"
        r"aiohttp|urlopen|create_connection"
    )
    sources = Path(vila_core.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if ways.search(path.read_text("utf-8"))] == ["fetch.py"]
