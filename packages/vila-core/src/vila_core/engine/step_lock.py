"""Lets threads share an engine: one steps it for all, and the others wait for the results."""

import threading
from collections.abc import Callable


class StepLock:
    """A lock that one thread holds while it steps; others can wait until a step has ended."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held during a step."""
        self._changed = threading.Condition()  # a step has ended

    def run(self, step: Callable[[], bool]) -> bool:
        """Wait for the lock, call `step`, and return its result."""
        with self.lock:
            result = step()
        with self._changed:
            self._changed.notify_all()
        return result

    def run_if_free(self, step: Callable[[], None]) -> bool:
        """Call `step` unless another thread is stepping; return whether it was called.

        Nobody queues for the lock: a thread that steps again and again would rarely let the others have it.
        """
        if not self.lock.acquire(blocking=False):
            return False
        try:
            step()
        finally:
            self.lock.release()
            with self._changed:
                self._changed.notify_all()
        return True

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until another thread has stepped, unless the reason for waiting is over."""
        with self._changed:
            if not is_over():
                self._changed.wait(timeout=0.05)
