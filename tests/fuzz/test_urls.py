"""Hostile URLs and servers: a file or a one-line error, within bounds. No address but that of the test is contacted."""

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import pytest
from tests.fuzz.bounded import assert_bounded

from vila_core.media import Image, MediaLimits, open_media
from vila_core.media.fetch import FetchPolicy, fetch

pytestmark = pytest.mark.slow

POLICY = FetchPolicy(allow_http=True, allow_private=True, timeout_s=3, idle_timeout_s=1, max_bytes=10_000_000)


@contextlib.contextmanager
def serving(*pieces: bytes, repeated: bytes = b"") -> Iterator[str]:
    """A server that answers with `pieces`, then with `repeated` until the connection ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(b"".join(pieces))
                        while repeated:
                            connection.sendall(repeated)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"


def fetching(*pieces: bytes, repeated: bytes = b"") -> Callable[[], object]:
    def case() -> bytes:
        with serving(*pieces, repeated=repeated) as url:
            return fetch(url, POLICY).read()

    return case


def test_hostile_servers() -> None:
    start, chunked = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    cases = {
        "endless status line": fetching(b"HTTP/1.1 200 ", repeated=b"x" * 65536),
        "endless header": fetching(start + b"X: ", repeated=b"x" * 65536),
        "endless headers": fetching(start, repeated=b"X: y\r\n" * 1000),
        "endless interim answers": fetching(repeated=b"HTTP/1.1 100 Continue\r\n\r\n"),
        "endless body": fetching(start + b"\r\n", repeated=bytes(65536)),
        "endless chunks of one byte": fetching(chunked, repeated=b"1\r\nx\r\n"),
        "endless chunk size": fetching(chunked, repeated=b"f" * 65536),
        "endless chunk extension": fetching(chunked + b"1;", repeated=b"x" * 65536),
        "endless trailers": fetching(chunked + b"0\r\n", repeated=b"X: y\r\n"),
        "chunk of 2^4000": fetching(chunked + b"f" * 1000 + b"\r\n", repeated=bytes(65536)),
        "negative chunks": fetching(chunked, repeated=b"-1\r\n\r\n"),
        "length of 5,000 digits": fetching(start + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"),
        "redirect to itself": fetching(b"HTTP/1.1 302 F\r\nLocation: /a.png\r\n\r\n"),
        "endless location": fetching(b"HTTP/1.1 302 F\r\nLocation: /" + b"a" * 60_000 + b"\r\n\r\n"),
        "location of bytes": fetching(b"HTTP/1.1 302 F\r\nLocation: \xff\xfe\x00\r\n\r\n"),
        "status of digits": fetching(b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n"),
        "silence": fetching(),
    }
    rng = random.Random(12)
    whole = start + b"Content-Length: 4\r\nContent-Type: image/png\r\nTransfer-Encoding: identity\r\n\r\nbody"
    for number in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(3)] = rng.choice((b"", b"\r\n", b":", b"\0", b"\xff", b" ", b"\x1b[2J"))
        cases[f"damaged answer {number}"] = fetching(bytes(data))
    assert_bounded(cases, megabytes=200)


def test_hostile_urls() -> None:
    rng = random.Random(5)
    parts = (
        *(
            "https://",
            "http://",
            "HTTPS://",
            "ftp://",
            "file://",
            "data:",
            "//",
            "\\\\",
            "@",
            ":",
            "#",
            "?",
            "/..",
            "%00",
        ),
        *(
            "127.0.0.1",
            "[::1]",
            "[::ffff:10.0.0.1]",
            "0x7f.1",
            "2130706433",
            "[fe80::1%25eth0]",
            "localhost",
            "ⓔxample",
        ),
        *("a.example", "user:pass@", ":99999", ":-1", ":0", ":٣", "\x00", "\n", "\ud800", "\u202e", "a" * 300, " "),
        *("image/png;base64,", ";" * 50, ",", "%41", "=" * 5),
    )
    cases: dict[str, Callable[[], object]] = {}
    for number in range(600):
        url = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 8)))
        cases[f"{number} {url[:60]!r}"] = partial(load_without_network, url)
    cases["10 MB"] = lambda: load_without_network("https://a.example/" + "a" * 10_000_000)
    cases["10 MB of @"] = lambda: load_without_network("https://" + "@" * 10_000_000)
    cases["10 MB of //"] = lambda: load_without_network("https:" + "/" * 10_000_000 + "@")
    cases["10 MB of a scheme"] = lambda: Image("a" * 10_000_000 + "://x").load()
    assert_bounded(cases, megabytes=200)


def load_without_network(url: str) -> None:
    with mock.patch("socket.getaddrinfo", side_effect=OSError("no network in this test")):
        media = open_media(url)
        if isinstance(media, Image):
            media.load(MediaLimits(fetch=FetchPolicy()))
        else:
            media.load(1)
