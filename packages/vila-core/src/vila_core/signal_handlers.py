"""Signal handlers for the time of a block."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signal_handler(number: int, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Generator[None]:
    """Handle a signal with `handler` inside the block.

    Outside the main thread, which alone may set signal handlers, the block runs with the handler as it is.

    Args:
        number: the signal, such as `signal.SIGTERM`.
        handler: a function, or `signal.SIG_IGN`; child processes inherit that a signal is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)  # None: set by a library in C
