"""The fetcher of media: bodies that are too large, slow, damaged or encoded in a way that HTTP parsers dispute."""

import socket
import threading
import time

import pytest
from tests.raw_server import LOOPBACK, OK, drip, refusal, whole

from vila_core.errors import MediaError, MediaLimitError
from vila_core.media.fetch import fetch


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
