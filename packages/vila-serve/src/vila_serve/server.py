"""Runs the server until it is stopped."""

import errno
import gc
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from vila_core.errors import ConfigError, MissingDependencyError
from vila_serve.answering.answering import Answering
from vila_serve.answering.process import EngineProcess, EngineProcessError
from vila_serve.api.http_protocol import HttpProtocol
from vila_serve.loading import loading_task
from vila_serve.observability.logs import log_to_stderr
from vila_serve.settings import ServeSettings

MAX_HEADER_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 30


def bind(settings: ServeSettings) -> socket.socket:
    """Return a socket bound to the host and port of the settings; it does not listen yet.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is not an address of this machine.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ConfigError(
            f"The host {host!r} (--host, VILA_HOST) is unknown. Use 127.0.0.1 for this machine only, or 0.0.0.0."
        ) from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(_why_not_bound(error, host, port)) from None
    return bound


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is taken by another program. Choose another with --port (VILA_PORT); 0 finds one."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Port {port} needs the rights of an administrator. Choose one from 1024 on with --port (VILA_PORT)."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"The host {host!r} (--host, VILA_HOST) is not an address of this machine. Use 127.0.0.1 or 0.0.0.0."
    return f"The server cannot listen on {host}, port {port}: {error.strerror}."


def serve_replicas(
    settings: ServeSettings, bound: socket.socket, announce: Callable[[], None], plugin_files: Sequence[Path] = ()
) -> None:
    """Start the replicas of the settings and serve them on a bound socket, as `serve` does.

    Raises:
        ConfigError: the replicas do not start.
        MissingDependencyError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("ray", "--replicas", "vila-serve[ray]")
    from vila_serve.replicas.run import start_replicas  # imported here because Ray is an extra, and slow to import

    without_page = settings.model_copy(update={"page": False})  # the front has it
    with start_replicas(partial(build_app, without_page, tuple(plugin_files)), settings) as front:
        announce()
        serve(front, settings, bound)


def build_app(settings: ServeSettings, plugin_files: Sequence[Path] = ()) -> FastAPI:
    """Start an engine with the model of the settings and return its application. A replica calls this.

    If the engine's process ends, so does this one: Ray starts another replica.
    """
    from vila_serve.api.app import create_app

    log_to_stderr(settings.log_level, settings.log_format)
    answering = EngineProcess(loading_task(settings, plugin_files)).wait_until_ready()
    answering.when_stopped(lambda _: os._exit(1))
    return create_app(answering, settings)


def http_config(app: ASGIApp, settings: ServeSettings) -> uvicorn.Config:
    """Return how uvicorn serves an application: with limits on headers, and without a word on the software."""
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )


def serve(app: ASGIApp, settings: ServeSettings, bound: socket.socket, answering: Answering | None = None) -> None:
    """Serve an application on a bound socket until SIGTERM or Ctrl-C, then finish the running requests.

    Args:
        app: the application.
        settings: of the server.
        bound: where to listen.
        answering: if its engine ends, so does the server.

    Raises:
        ConfigError: another program has taken the port meanwhile.
        EngineProcessError: the engine's process ended.
    """
    log_to_stderr(settings.log_level, settings.log_format)
    config = http_config(app, settings)
    try:
        bound.listen(config.backlog)
    except OSError as error:
        raise ConfigError(_why_not_bound(error, settings.host, bound.getsockname()[1])) from None
    # After a graceful stop, uvicorn raises the signal again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    server = uvicorn.Server(config)
    if answering is not None:
        answering.when_stopped(lambda _: setattr(server, "should_exit", True))
    gc.collect()
    gc.freeze()  # what has been imported stays, so that the collector need not look at it again and again
    server.run(sockets=[bound])
    if answering is not None and answering.stopped is not None:
        raise EngineProcessError(f"{answering.stopped} Start the server again.")


def address_of(bound: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)
