"""The requests of an engine, in a list for each state, and the pages and rows that they hold."""

import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from vila_core.engine.request import Request, State

if TYPE_CHECKING:
    from vila_core.engine.runner import Runner


class RequestLists:
    """The requests that are queued, being read, and being answered. Companions are not listed beside their leaders."""

    def __init__(self) -> None:
        self.queue: deque[Request] = deque()
        self.reading: list[Request] = []
        self.answering: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return chain(self.queue, self.reading, self.answering)

    @property
    def running(self) -> list[Request]:
        """Those that hold pages."""
        return [*self.reading, *self.answering]

    @property
    def num_rows(self) -> int:
        """How many rows those that hold pages have, or will have."""
        return sum(len(request.sequences) for request in self.running)

    @property
    def unread(self) -> list[Request]:
        """The prompts that are still to be read, those of companions among them."""
        return [one for request in self.reading for one in request.sequences if one.last_hidden is None]

    def read(self, request: Request) -> None:
        """Note that a request is read from now on."""
        request.state = State.READING
        self.reading.append(request)

    def answer(self, request: Request) -> None:
        """Note that a request has been read."""
        self.reading.remove(request)
        self.answering.append(request)
        request.state = State.ANSWERING

    def leave_rows(self, runner: "Runner", request: Request) -> None:
        """Take a request from those that are read or answered, and its rows away; it keeps its pages."""
        (self.answering if request.state is State.ANSWERING else self.reading).remove(request)
        for one in request.sequences:
            runner.leave(one)
            one.last_hidden = None

    def leave(self, runner: "Runner", request: Request) -> None:
        """Take the request's rows and pages away."""
        self.leave_rows(runner, request)
        for one in request.sequences:
            release(runner, one)

    def requeue(self, runner: "Runner", request: Request) -> None:
        """Send a request back to the queue; later it reads its prompt and its answer so far again."""
        self.leave(runner, request)
        request.state = State.QUEUED
        request.chosen = len(request.answer.token_ids)
        if request.drawing is not None:
            request.drawing.chosen = len(request.drawing.codes)
        self.queue.appendleft(request)

    def end(self, runner: "Runner | None", request: Request, error: Exception | None = None) -> None:
        """End a request and its companion.

        Args:
            runner: has their rows and pages; may be None while the request is in the queue.
            request: either of them.
            error: why there is no answer; None if the answer so far is it.
        """
        request = request.leader or request
        request.error = error
        for one in request.sequences:
            one.prompt.release(len(one.prompt))
        if request.state is State.QUEUED:
            self.queue.remove(request)
        else:
            assert runner is not None, "a request outside the queue holds pages of a runner"
            self.leave(runner, request)
        request.state = State.ENDED
        request.times.ended = time.perf_counter()

    def abandon(self, error: Exception) -> None:
        """End every request without giving back rows and pages, since nobody knows their state."""
        for request in self:
            request.prompt.release(len(request.prompt))
            request.error, request.state, request.times.ended = error, State.ENDED, time.perf_counter()
        self.queue.clear()
        self.reading.clear()
        self.answering.clear()


def release(runner: "Runner", request: Request) -> None:
    """Give back the pages of one sequence."""
    runner.pool.release(request.pages)
    request.pages = []
