"""Runs a step: admits requests, reads prompts, launches the next tokens of answers, and collects the chosen ones.

n requests, D width
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.engine.admission import Admission
from vila_core.engine.collecting import Collector
from vila_core.engine.drafts import Drafts
from vila_core.engine.reading import Reader
from vila_core.engine.request import Request, State
from vila_core.engine.request_lists import RequestLists

if TYPE_CHECKING:
    from vila_core.engine.runner import PendingStep, Runner


class Scheduler:
    """Decides which requests are read and answered in each step.

    Args:
        requests: by state.
        admission: takes them from the queue.
        reader: reads their prompts.
        collector: adds to their answers.
    """

    def __init__(self, requests: RequestLists, admission: Admission, reader: Reader, collector: Collector):
        self._requests = requests
        self._admission = admission
        self._reader = reader
        self._collector = collector
        self._pending: deque[PendingStep] = deque()
        self.drafts = Drafts()
        self.preemptions = 0
        """How often a request had to give up its pages since the start."""

    @property
    def is_busy(self) -> bool:
        """Whether there is a request, or a step whose tokens are not known."""
        return bool(self._pending) or any(True for _ in self._requests)

    def step(self, runner: "Runner") -> None:
        """Let every request advance."""
        self._admission.admit(runner)
        self._end_oversized(runner)
        self._read(runner)
        self._answer(runner)
        self._collect(runner, keep=1 if self._overlaps(runner) else 0)

    def abandon(self, error: Exception) -> None:
        """End every request without asking a runner, and forget the steps that were launched."""
        self._requests.abandon(error)
        self._pending.clear()

    def _end_oversized(self, runner: "Runner") -> None:
        """End the answer of the next request if even an idle engine lacks pages or rows for it.

        What is checked when a request is submitted does not count pictures that the model begins on its own.
        """
        if self._requests.queue and not self._requests.running and not self._pending:
            request = self._requests.queue[0]
            request.pieces.append(request.answer.end("length"))
            self._requests.end(runner, request)

    def _read(self, runner: "Runner") -> None:
        """Read a part of the prompts, and choose the first tokens or codes after those that are complete."""
        if not self._requests.reading:
            return
        unread = self._requests.unread
        others_wait = bool(self._requests.answering) or len(unread) > 1
        for request, hidden in self._reader.read(runner, unread, others_wait=others_wait):
            request.last_hidden = hidden
            if request.leader is not None and not request.answer.length:
                request.prompt_hidden = hidden
        complete = [request for request in self._requests.reading if request.is_read]
        writing = [request for request in complete if request.drawing is None]
        drawing = [request for request in complete if request.drawing is not None]
        if writing:
            self._pending.append(runner.start(writing, self._start(writing)))
        if drawing:
            self._pending.append(runner.start_drawing(drawing, self._start(drawing)))

    def _start(self, requests: Sequence[Request]) -> Tensor:
        """Begin to answer requests that have been read; return the hidden states of the last tokens, `[n, D]`."""
        hidden: list[Tensor] = []
        for request in requests:
            self._requests.answer(request)
            request.count_step()
            hidden += request.take_hidden()
        return torch.stack(hidden)

    def _answer(self, runner: "Runner") -> None:
        """Launch the step that reads the last token of each answer and chooses the next."""
        answering = self._requests.answering
        if any(request.needs_last_token for request in answering):
            self._collect(runner)
        for request in list(answering):
            if request.state is State.ANSWERING:
                self._make_room(runner, request)
        if any(request.is_complete for request in answering):
            self._collect(runner)  # these end, or change between writing and drawing
        if not answering:
            return
        draws = any(request.drawing is not None for request in answering)
        drafts = {} if draws else self.drafts.make(runner, answering)
        step = runner.step(drafts)
        self._pending.append(step)
        for request in [*step.requests, *(() if step.drawn is None else step.drawn.requests)]:
            request.length += 1
            request.count_step()
        for request, draft in drafts.items():
            self.drafts.count(request, len(draft), step.requests.count(request) - 1)

    def _make_room(self, runner: "Runner", request: Request) -> None:
        """Give the request a page for its next token. Without a free page, the youngest request gives up its own."""
        while request.state is State.ANSWERING and runner.pages_for(request.length + 1) > len(request.pages):
            taken = runner.pool.take(1, request.pages[-1] if request.pages else None)
            if taken is not None:
                request.pages += taken
                return
            self._collect(runner)
            if running := self._requests.running:
                self.preemptions += 1
                self._requests.requeue(runner, max(running, key=lambda other: other.number))

    def _overlaps(self, runner: "Runner") -> bool:
        """Whether the next step may be launched before the tokens of the last are known."""
        return runner.overlaps and not any(request.needs_last_token for request in self._requests.answering)

    def _collect(self, runner: "Runner", keep: int = 0) -> None:
        """Wait for the tokens of all launched steps but the last `keep`, and add them to the answers."""
        while len(self._pending) > keep:
            self._collector.collect(runner, self._pending.popleft())
