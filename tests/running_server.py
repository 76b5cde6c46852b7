"""An application served on loopback from a thread of the test process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from vila_core import Vila
from vila_serve.server import address_of, bind, http_config
from vila_serve.settings import ServeSettings


def model_of(app: Any) -> Vila:
    """Return the model of an application whose engine runs in this process."""
    return app.state.service.answering.link.side.model


def wait_until(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for a condition; the test fails if it takes too long."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@dataclass(frozen=True)
class RunningServer:
    """A server in a thread of this process."""

    url: str
    app: Any

    @property
    def requests(self) -> int:
        """Requests in the engine."""
        stats = model_of(self.app).engine.stats()
        return stats.queued + stats.reading + stats.answering


@contextmanager
def running(app: Any, *, shutdown_timeout: int = 5) -> Iterator[RunningServer]:
    """Serve an application on a free port. Its requests get `shutdown_timeout` seconds to finish at the end."""
    bound = bind(ServeSettings(port=0))
    server = uvicorn.Server(http_config(app, ServeSettings(shutdown_timeout=shutdown_timeout)))
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield RunningServer(address_of(bound), app)
    finally:
        server.should_exit = True
        thread.join(timeout=shutdown_timeout + 120)
        assert not thread.is_alive(), "the server did not stop"
