"""Loads the model and runs the server until it is told to stop."""

import errno
import importlib.util
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

import vila_core
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.errors import ConfigError, MissingDependencyError, warn
from vila_core.language.paged_cache import PAGE_SIZE
from vila_serve.api.app import create_app
from vila_serve.api.http_protocol import HttpProtocol
from vila_serve.observability.logs import log_to_stderr
from vila_serve.settings import ServeSettings

MAX_HEADER_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 30
SWITCH_SECONDS = 0.0005
"""After so long, a thread that computes lets another one run. Python's 5 ms are as long as a step of the engine, whose
thread would wait that long for the event loop, and the event loop for it after each write to a socket."""


def bind(settings: ServeSettings) -> socket.socket:
    """Return a socket bound to the host and port of the settings; it does not listen yet.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is no address of this machine.
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


def load_model(settings: ServeSettings, progress: bool | Callable[[int, int], None] = False) -> vila_core.Vila:
    """Load the model of the settings, and answer once, so that the first client need not wait for that.

    Raises:
        CheckpointError, ConfigError: as `vila_core.load` does.
    """
    devices = None if settings.device_map in (None, "auto") else settings.device_map.split(",")
    model = vila_core.load(
        settings.model_path or EMBEDDED_MODEL,
        device=settings.device,
        device_map=devices or settings.device_map,
        dtype=settings.dtype,
        chat_template=None if settings.conv_mode == "auto" else settings.conv_mode,
        revision=settings.revision,
        offline=settings.offline,
        lora=settings.lora_path,
        engine=vila_core.EngineConfig(
            max_batch=settings.max_batch,
            max_queue=settings.max_batch + settings.max_queue,
            cache_bytes=settings.cache_bytes,
            kv_cache_dtype=settings.kv_cache_dtype,
        ),
        progress=progress,
    )
    model.generate("Hello", max_new_tokens=1)
    held = model.engine.stats().pages * PAGE_SIZE
    context = min(settings.max_context or sys.maxsize, model.config.language_model.max_length)
    if held < context:
        warn(
            f"The KV cache holds {held:,} tokens, but a request may have {context:,} (--max-context): longer ones are "
            "refused. Give it more memory with --cache-bytes, or use --kv-cache-dtype fp8, or a smaller or quantized "
            "model."
        )
    return model


def serve_replicas(settings: ServeSettings, bound: socket.socket, announce: Callable[[], None]) -> None:
    """Start the replicas of the settings and serve them on a bound socket, as `serve` does.

    Raises:
        ConfigError: the replicas do not start.
        MissingDependencyError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("ray", "--replicas", "vila-serve[ray]")
    from vila_serve.replicas.run import start_replicas  # imported here because Ray is an extra, and slow to import

    without_page = settings.model_copy(update={"page": False})  # the front has it
    with start_replicas(partial(build_app, without_page), settings) as front:
        announce()
        serve(front, settings, bound)


def build_app(settings: ServeSettings) -> FastAPI:
    """Load the model of the settings and return its application. A replica calls this in its process."""
    log_to_stderr(settings.log_level, settings.log_format)
    return create_app(load_model(settings), settings)


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


def serve(app: ASGIApp, settings: ServeSettings, bound: socket.socket) -> None:
    """Serve an application on a bound socket until SIGTERM or Ctrl-C, then finish the running requests.

    Raises:
        ConfigError: another program has taken the port meanwhile.
    """
    log_to_stderr(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_SECONDS)
    config = http_config(app, settings)
    try:
        bound.listen(config.backlog)
    except OSError as error:
        raise ConfigError(_why_not_bound(error, settings.host, bound.getsockname()[1])) from None
    # After a graceful stop, uvicorn raises the signal again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    uvicorn.Server(config).run(sockets=[bound])


def address_of(bound: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)
