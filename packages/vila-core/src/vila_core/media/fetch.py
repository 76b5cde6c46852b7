"""Fetches media URLs. This is the only code that accesses the network for URLs in prompts.

Each guard prevents an attack that other servers have suffered:

- One strict parser parses a URL once, and refuses what a lenient parser would silently repair.
- A host name is resolved once. All its addresses must be public, and the connection goes to one of these addresses.
- Every redirect is checked like a new URL.
- Bytes and time are limited during streaming.
- Error messages contain no addresses and no query strings.
"""

import http.client
import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, cast

from vila_core.errors import FetchError, MediaError, MediaLimitError
from vila_core.media.addresses import is_public
from vila_core.media.limits import MIB, FetchPolicy
from vila_core.media.urls import Target, parse_url, resolve_redirect, shorten_url

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_RAISE_BYTES = (
    "Raise MediaLimits.max_image_bytes or max_video_bytes (and FetchPolicy.max_bytes), or use a smaller file."
)
_LENGTH = re.compile("[0-9]{1,18}")
_REDIRECTS = (301, 302, 303, 307, 308)
_POLL_S = 0.2
"""How often a fetch looks whether it was cancelled, while it waits for data."""


def fetch(
    url: str,
    policy: FetchPolicy,
    max_bytes: int | None = None,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> IO[bytes]:
    """Return the body of `url` as a seekable file, positioned at its start: in memory if small, else a temporary file.

    Args:
        url: https, unless the policy allows http.
        policy: what may be contacted, and limits.
        max_bytes: lowers the limit of the policy.
        is_cancelled: whether the body is no longer needed. The fetch then ends with an error within a second.

    Raises:
        FetchError: the URL is refused, its host is not allowed or not public, there are too many redirects, or the
            response is not 200 or incomplete.
        MediaLimitError: the response is too large or too slow.
    """
    limit = policy.max_bytes if max_bytes is None else min(policy.max_bytes, max_bytes)
    name = shorten_url(url)
    deadline = _Deadline(policy, name, is_cancelled)
    target = parse_url(url, policy, name)
    for _ in range(policy.max_redirects + 1):
        addresses = _resolve(target, policy, deadline, name)
        with closing(_connect(addresses, target, policy, deadline, name)) as connection:
            answer = _request(connection, target, deadline, name)
            if answer.status in _REDIRECTS:
                location = answer.getheader("Location")
                if not location:
                    raise FetchError(f"URL {name} redirects without a location. Use the final URL.")
                target = resolve_redirect(target, location, policy, name)
                continue
            return _read_body(answer, limit, deadline, name)
    raise FetchError(f"URL {name}: more than {policy.max_redirects} redirects. Use the final URL.")


def _resolve(target: Target, policy: FetchPolicy, deadline: "_Deadline", name: str) -> list[str]:
    """Resolve the host once and return its addresses. Raises `FetchError` unless all of them are public."""
    found: list[str] = []
    failure: list[OSError] = []

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError) as error:
            failure.append(OSError(str(error)))

    # getaddrinfo has no timeout; with a daemon thread we can stop waiting
    thread = threading.Thread(target=look_up, daemon=True, name="vila-resolve")
    thread.start()
    while thread.is_alive():
        thread.join(min(deadline.remaining(), _POLL_S))
        deadline.check()
    if failure or not found:
        raise FetchError(f"URL {name}: the host cannot be found. Check its spelling and your network.")
    if not policy.allow_private and not all(is_public(address) for address in found):
        raise FetchError(
            f"URL {name}: the host is not on the public internet, so it is not fetched. "
            "Download the file and use its path."
        )
    return found


class _Deadline:
    """The time left for the whole fetch."""

    def __init__(self, policy: FetchPolicy, name: str, is_cancelled: Callable[[], bool]):
        self._end = time.monotonic() + policy.timeout_s
        self._policy = policy
        self._name = name
        self._is_cancelled = is_cancelled

    def check(self) -> None:
        if self._is_cancelled():
            raise FetchError(f"URL {self._name}: the fetch was cancelled.")
        if time.monotonic() >= self._end:
            raise MediaLimitError(
                f"URL {self._name} took longer than {self._policy.timeout_s:g} s. "
                "Raise FetchPolicy.timeout_s, or download the file.",
                "timeout_s",
            )

    def remaining(self) -> float:
        return max(self._end - time.monotonic(), 0.001)

    def next_wait(self) -> float:
        """How many seconds one read may block."""
        self.check()
        return min(self.remaining(), self._policy.idle_timeout_s)


class _TimedReader(io.RawIOBase):
    """Reads a socket within the deadline, so a peer that sends single bytes slowly cannot block us."""

    def __init__(self, connection: socket.socket, deadline: _Deadline):
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        wait = self._deadline.next_wait()
        end = time.monotonic() + wait
        while True:
            self._connection.settimeout(min(wait, _POLL_S))
            try:
                return self._connection.recv_into(buffer)
            except TimeoutError:
                self._deadline.check()
                if time.monotonic() >= end:
                    raise


class _TimedSocket:
    """The part of a socket that http.client uses. The owner of the socket closes it."""

    def __init__(self, connection: socket.socket, deadline: _Deadline):
        self._connection = connection
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(self._deadline.next_wait())
        self._connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._connection, self._deadline))

    def close(self) -> None:
        pass


def _connect(
    addresses: list[str], target: Target, policy: FetchPolicy, deadline: _Deadline, name: str
) -> socket.socket:
    """Connect to the first address that answers. With https, verify the certificate for the host in the URL."""
    context = _tls_context(policy) if target.scheme == "https" else None
    for address in addresses:
        connection = _open_socket(address, target.port, deadline)
        if connection is None:
            continue
        try:
            if context is None:
                return connection
            connection.settimeout(deadline.next_wait())
            return context.wrap_socket(connection, server_hostname=target.host.removesuffix("."))
        except (MediaError, OSError, ValueError):
            connection.close()
            deadline.check()
            raise FetchError(
                f"URL {name}: no valid TLS connection. The host's certificate must be valid for its name."
            ) from None
    deadline.check()
    raise FetchError(f"URL {name}: no connection to the host. Check the URL and your network.")


def _open_socket(address: str, port: int, deadline: _Deadline) -> socket.socket | None:
    """Connect to an address, without another lookup. Return None if it cannot be reached."""
    wait = deadline.next_wait()
    try:
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        connection.settimeout(wait)
        connection.connect((address, port))
    except OSError:
        connection.close()
        return None
    return connection


def _tls_context(policy: FetchPolicy) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(policy.ca_file) if policy.ca_file else None)
    except OSError:
        raise FetchError(
            f"FetchPolicy.ca_file '{policy.ca_file}' is not a readable file of PEM certificates."
        ) from None


def _request(connection: socket.socket, target: Target, deadline: _Deadline, name: str) -> http.client.HTTPResponse:
    """Request the target. No cookies, proxies or credentials are used."""
    client = http.client.HTTPConnection(target.host, target.port)
    client.sock = cast(socket.socket, _TimedSocket(connection, deadline))
    headers = {
        "Host": target.host_header,
        "User-Agent": "vila-kit",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    try:
        client.request("GET", target.path, headers=headers)
        return client.getresponse()
    except TimeoutError:
        raise _too_slow(deadline, name) from None
    except (OSError, http.client.HTTPException, ValueError):
        raise FetchError(f"URL {name}: the response is not valid HTTP. Check the URL.") from None


def _read_body(answer: http.client.HTTPResponse, limit: int, deadline: _Deadline, name: str) -> IO[bytes]:
    if answer.status != 200:
        raise FetchError(
            f"URL {name}: the host answered with status {answer.status}, not 200. "
            "Check that the URL opens in a private browser window."
        )
    _check_framing(answer.headers, name)
    if answer.length is not None and answer.length > limit:
        raise MediaLimitError(
            f"URL {name}: {answer.length:,} bytes are more than the limit of {limit:,}. {_RAISE_BYTES}", "max_bytes"
        )
    body = cast(IO[bytes], SpooledTemporaryFile(max_size=32 * MIB))  # noqa: SIM115 - handed to the caller
    try:
        for piece in _stream_body(answer, limit, deadline, name):
            body.write(piece)
    except BaseException:
        body.close()
        raise
    body.seek(0)
    return body


def _check_framing(headers: http.client.HTTPMessage, name: str) -> None:
    """Raise `FetchError` unless the headers say in one way where the body ends, and that it is not compressed.

    Two programs that read such headers differently see different bodies, and a compressed body can be a bomb. Source:
    RFC 9112, section 6.
    """
    lengths, codings = headers.get_all("Content-Length", []), headers.get_all("Transfer-Encoding", [])
    if any((coding or "identity").lower() != "identity" for coding in headers.get_all("Content-Encoding", [])):
        raise FetchError(
            f"URL {name}: the host sent a compressed response, which was not requested. "
            "Download the file and use its path."
        )
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        raise FetchError(
            f"URL {name}: the host sent a transfer encoding other than 'chunked'. Download the file and use its path."
        )
    if len(lengths) + len(codings) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise FetchError(
            f"URL {name}: the host did not send one valid Content-Length. Download the file and use its path."
        )


def _stream_body(answer: http.client.HTTPResponse, limit: int, deadline: _Deadline, name: str) -> Iterator[bytes]:
    """Yield the body in pieces, at most `limit` bytes in total."""
    announced = answer.length
    received = 0
    while True:
        try:
            piece = answer.read1(65536)
        except TimeoutError:
            raise _too_slow(deadline, name) from None
        except (OSError, http.client.HTTPException, ValueError):
            raise FetchError(f"URL {name}: the connection broke after {received:,} bytes. Try again.") from None
        left = getattr(answer, "chunk_left", None)  # http.client takes sizes such as "-5"
        if isinstance(left, int) and left < 0:
            raise FetchError(f"URL {name}: the response is not valid HTTP. Check the URL.")
        if not piece:
            break
        received += len(piece)
        if received > limit:
            raise MediaLimitError(f"URL {name}: more than the limit of {limit:,} bytes. {_RAISE_BYTES}", "max_bytes")
        yield piece
        deadline.check()
    if announced is not None and received < announced:
        raise FetchError(f"URL {name}: the connection ended after {received:,} of {announced:,} bytes. Try again.")


def _too_slow(deadline: _Deadline, name: str) -> MediaLimitError:
    deadline.check()
    return MediaLimitError(
        f"URL {name}: the host stopped sending data. Try again, raise FetchPolicy.idle_timeout_s, or download the "
        "file.",
        "idle_timeout_s",
    )
