"""A local HTTP server whose answers are raw bytes, for tests of the fetcher of media."""

import contextlib
import socket
import socketserver
import threading
import time

import pytest

from vila_core.errors import MediaError
from vila_core.media.fetch import FetchPolicy, fetch

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


def drip(head):
    def answer(connection):
        connection.sendall(head)
        for _ in range(2000):
            connection.sendall(b"x")
            time.sleep(0.05)

    return answer


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
