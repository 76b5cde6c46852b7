"""How much memory the decoded media of all requests take."""

import threading
import weakref


class HeldMemory:
    """Counts the bytes of objects until they are freed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may run in the middle of any code, also of `add`
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of the objects that still exist."""
        return self._bytes

    def add(self, owner: object, size: int) -> None:
        """Count `size` bytes until `owner` is freed."""
        self._change(size)
        weakref.finalize(owner, self._change, -size).atexit = False

    def _change(self, by: int) -> None:
        with self._lock:
            self._bytes += by
