"""A stand-in for a GPU, for `serving.py --step-ms`: the engine does all its work on the host, but each step only waits.

What is measured is then what the server and the engine's own bookkeeping cost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import vila_core
from vila_core.engine.pages import PagePool, pages_of
from vila_core.engine.request import Request
from vila_core.engine.runner import PendingStep

PAGES = 10_000
TOKEN = 300
"""Every token of every answer; it has a text in the embedded model's vocabulary."""


@dataclass(frozen=True)
class WaitingTokens:
    """Tokens that are there at a time, in seconds of `time.perf_counter`."""

    ids: list[int]
    ready: float
    logits: Tensor

    def tokens(self) -> list[int]:
        """Wait for the tokens."""
        time.sleep(max(0.0, self.ready - time.perf_counter()))
        return self.ids


class WaitingRunner:
    """A `Runner` whose steps take `seconds` of a device that does one after the other."""

    def __init__(self, width: int, seconds: float):
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.pool = PagePool(PAGES)
        self.reads_in_chunks = True
        self.overlaps = True
        self.checks_drafts = False
        self._width = width
        self._seconds = seconds
        self._rows: list[Request] = []
        self._free = 0.0

    def pages_for(self, tokens: int) -> int:
        """See `Runner`."""
        return pages_of(tokens)

    def read(self, requests: Sequence[Request], embeds: Sequence[Tensor]) -> Tensor:
        """See `Runner`."""
        return torch.zeros(len(requests), self._width)

    def start(self, requests: Sequence[Request], hidden: Tensor) -> PendingStep:
        """See `Runner`."""
        for request in requests:
            request.row = len(self._rows)
            self._rows.append(request)
        return self._pending(requests)

    def start_drawing(self, requests: Sequence[Request], hidden: Tensor) -> PendingStep:
        """See `Runner`: the models that this stands for only write."""
        raise NotImplementedError

    def step(self, drafts: Mapping[Request, Sequence[int]]) -> PendingStep:
        """See `Runner`."""
        return self._pending(tuple(self._rows))

    def leave(self, request: Request) -> None:
        """See `Runner`."""
        if request.row >= 0:
            self._rows.remove(request)
            request.row = -1

    def _pending(self, requests: Sequence[Request]) -> PendingStep:
        self._free = max(self._free, time.perf_counter()) + self._seconds
        tokens = WaitingTokens([TOKEN] * len(requests), self._free, torch.zeros(0))
        return PendingStep(requests, tokens, self.dtype)


def let_steps_wait(model: vila_core.Vila, seconds: float) -> None:
    """Replace what computes the model's answers; its engine must be unused."""
    width = model.config.language_model.hidden_size
    model.engine._runner = WaitingRunner(width, seconds)  # pyright: ignore[reportPrivateUsage]
