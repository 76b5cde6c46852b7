"""Both sides in one process: for tests, notebooks and applications that have loaded a model already."""

import asyncio
import threading
from collections.abc import Callable

from vila_core import Vila
from vila_serve.answering.engine_side import EngineSide
from vila_serve.answering.messages import FromEngine, ToEngine


class LocalLink:
    """Passes messages between the event loop and the engine's threads."""

    def __init__(self, model: Vila, max_context: int | None = None):
        self.side = EngineSide(model, max_context, self._pass_on)
        self.facts = self.side.facts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receive: Callable[[FromEngine], None] | None = None
        self._thread = threading.Thread(target=self.side.run, name="engine", daemon=True)

    def start(self, receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> None:
        """See `Link`. The engine's thread ends with the process only."""
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._thread.start()

    async def send(self, message: ToEngine) -> None:
        """See `Link`."""
        self.side.handle(message)

    def send_now(self, message: ToEngine) -> None:
        """See `Link`."""
        self.side.handle(message)

    async def stop(self) -> None:
        """See `Link`."""
        self.side.stop()
        await asyncio.to_thread(self._thread.join)

    def _pass_on(self, message: FromEngine) -> None:
        assert self._loop is not None, "messages come after the start"
        assert self._receive is not None
        try:
            self._loop.call_soon_threadsafe(self._receive, message)
        except RuntimeError:  # the loop is closed, so that nobody reads the answers
            self.side.stop()
