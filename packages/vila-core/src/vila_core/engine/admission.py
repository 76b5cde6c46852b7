"""Admission of queued requests: which are read next, and which pages they get."""

import time
from typing import TYPE_CHECKING

from vila_core.engine.known_prompts import KnownPrompts
from vila_core.engine.request import Request
from vila_core.engine.request_lists import RequestLists, release
from vila_core.language.page_size import PAGE_SIZE

if TYPE_CHECKING:
    from vila_core.engine.runner import Runner


class Admission:
    """Takes requests from the queue while there are rows and pages, in their order.

    Args:
        requests: by state.
        max_rows: of a step.
        known_prompts: those of companions.
    """

    def __init__(self, requests: RequestLists, max_rows: int, known_prompts: KnownPrompts):
        self._requests = requests
        self._max_rows = max_rows
        self._known_prompts = known_prompts
        self.cached_tokens = 0
        """Prompt tokens that were found in the cache since the start."""

    def admit(self, runner: "Runner") -> None:
        """Take requests from the queue."""
        queue = self._requests.queue
        if not queue:
            return
        unknown = [request for request in self._requests.running if not request.times.first_token]
        coming = {key for request in unknown for key in _keys(request)}
        while queue and self._requests.num_rows + len(queue[0].sequences) <= self._max_rows:
            request = queue[0]
            if not self._get_pages(runner, request, coming):
                break
            queue.popleft()
            request.times.admitted = request.times.admitted or time.perf_counter()  # a preempted one comes back
            self._requests.read(request)
            coming |= _keys(request)

    def extend(self, runner: "Runner", request: Request) -> bool:
        """Give a request that holds pages those that it needs next, and its companion all; return whether that worked.

        It needs rows, too.
        """
        if self._requests.num_rows + len(request.sequences) > self._max_rows:
            return False
        missing = runner.pages_for(request.num_tokens + request.tokens_ahead) - len(request.pages)
        taken = runner.pool.take(max(missing, 0), request.pages[-1] if request.pages else None)
        if taken is None:
            return False
        request.pages += taken
        return request.companion is None or self._get_pages_of(runner, request.companion, request.tokens_ahead, set())

    def _get_pages(self, runner: "Runner", request: Request, coming: set[bytes]) -> bool:
        """Give the request, and its companion, the pages that they need; return whether that worked for both."""
        for one in request.sequences:
            if not self._get_pages_of(runner, one, request.tokens_ahead, coming):
                for other in request.sequences:
                    release(runner, other)
                return False
        return True

    def _get_pages_of(self, runner: "Runner", request: Request, ahead: int, coming: set[bytes]) -> bool:
        """Give one sequence the pages of its prompt, those that are known included; return whether that worked."""
        tokens = request.num_tokens
        known = request.keys.keys[: (tokens - 1) // PAGE_SIZE] if request.keys else []
        found = runner.pool.find(known)
        # What another request is just computing is worth waiting for.
        waits = len(found) < len(known) and known[len(found)] in coming
        if request.leader is not None:
            self._known_prompts.touch(runner, request)
        needed = runner.pages_for(tokens + ahead) - len(found)
        taken = None if waits else runner.pool.take(needed, found[-1] if found else None)
        if taken is None:
            runner.pool.release(found)
            return False
        request.pages = [*found, *taken]
        request.length = request.remembered = len(found) * PAGE_SIZE
        self.cached_tokens += request.length
        if request.leader is not None:
            self.cached_tokens += self._known_prompts.copy(runner, request)
        request.cached = min(request.length, len(request.prompt))
        return True


def _keys(request: Request) -> set[bytes]:
    return {key for one in request.sequences if one.keys for key in one.keys.keys}
