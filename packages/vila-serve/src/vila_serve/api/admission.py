"""How many requests the server takes on at a time. One more is refused at once, before its body is read."""

import math

MAX_RETRY_AFTER = 60
_WEIGHT = 0.1
"""Weight of the newest request in the moving average of request times."""


class Admission:
    """Counts the requests in progress.

    Args:
        max_requests: most requests that are answered or wait.
        max_bytes: most bytes of all their bodies together.
    """

    def __init__(self, max_requests: int, max_bytes: int):
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0
        self.is_closing = False
        self._seconds = 1.0

    def enter(self) -> bool:
        """Count one request more; return False if there is no place for it."""
        if self.requests >= self.max_requests:
            return False
        self.requests += 1
        return True

    def leave(self, num_bytes: int, seconds: float) -> None:
        """Count one request less, whose body had so many bytes and which took so long."""
        self.requests -= 1
        self.bytes -= num_bytes
        self._seconds += _WEIGHT * (seconds - self._seconds)

    @property
    def retry_after(self) -> int:
        """After how many seconds a refused client should try again: about as long as a request takes."""
        return max(1, min(MAX_RETRY_AFTER, math.ceil(self._seconds)))
