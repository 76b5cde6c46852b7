"""The part of a decode step that generates images.

R rows, n rows that draw, B rows of a step, D width
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.engine.row_order import RowOrder
from vila_core.generation.drawing_rows import DrawingRows
from vila_core.generation.heads import GenerationHead
from vila_core.language import LanguageModel
from vila_core.language.paged_rows import ReadyTokens, StepKind
from vila_core.language.paged_step import PagedStep, PendingCodes

if TYPE_CHECKING:
    from vila_core.engine.request import Request


@dataclass(frozen=True)
class PendingDrawings:
    """The codes of a step, which the device may still be computing.

    Attributes:
        requests: in the order of their rows, companions among them.
        chosen: their codes.
    """

    requests: "Sequence[Request]"
    chosen: PendingCodes

    def codes(self) -> "Iterator[tuple[Request, tuple[int, ...] | None]]":
        """Yield each request, but no companions, with its codes; None if the logits cannot be used."""
        for request, codes in zip(self.requests, self.chosen.tokens(), strict=True):
            if request.leader is None:
                yield request, None if min(codes) < 0 else tuple(codes)


class DrawingStep:
    """Chooses and embeds the codes of the rows that draw.

    Args:
        llm: the language model.
        step: computes.
        weight: any of the language model's, for its device and dtype.
        head: chooses and embeds codes.
        order: which request has which row.
    """

    def __init__(self, llm: LanguageModel, step: PagedStep, weight: Tensor, head: GenerationHead, order: RowOrder):
        self._llm = llm
        self._step = step
        self._order = order
        size = len(step.rows.ids), llm.config.hidden_size
        self._new_rows = lambda: DrawingRows(
            head, *size, weight.device, weight.dtype, step.choose_tokens, step.choose_codes
        )

    @property
    def _rows(self) -> DrawingRows:
        if self._order.drawing is None:
            self._order.drawing = self._new_rows()  # a model that never draws needs no memory for it
        return self._order.drawing

    @property
    def _requests(self) -> "Sequence[Request]":
        return self._order.requests[: self._order.num_drawing]

    @property
    def _kind(self) -> StepKind:
        """What at least one of the rows needs."""
        return StepKind.of([one.drawing.sampling.of_row for one in self._requests if one.drawing is not None])

    @torch.inference_mode()
    def start(self, requests: "Sequence[Request]", hidden: Tensor) -> PendingDrawings:
        """See `Runner.start_drawing`."""
        first, rows = self._order.num_drawing, self._rows
        for request in requests:
            assert request.drawing is not None
            for one in request.sequences:
                self._order.add(one, draws=True)
            companion = None if request.companion is None else request.companion.row
            rows.start(request.row, request.drawing.sampling, len(request.drawing.codes), companion)
        codes = rows.draw(hidden, self._kind, first)
        return PendingDrawings(tuple(self._requests[first:]), ReadyTokens(hidden, codes))

    def step(self) -> PendingDrawings:
        """Read what the rows read next, when no others do."""
        requests = tuple(self._requests)
        return PendingDrawings(requests, self._step.draw(self._rows, len(requests), self._kind))

    @torch.inference_mode()
    def step_with_others(self) -> tuple[PendingDrawings, Tensor]:
        """Read what all rows read next; return the hidden states of those that write, `[B - n, D]`, too."""
        count, ids = len(self._requests), self._step.rows.ids[self._order.num_drawing : len(self._order.requests)]
        embeds = self._llm.embed(ids[None])[0]
        hidden = self._step.hidden(torch.cat([self._rows.embeds[:count], embeds.to(self._rows.embeds.dtype)]))
        chosen = self._step.draw_after(self._rows, hidden[:count], self._kind)
        return PendingDrawings(tuple(self._requests), chosen), hidden[count:]
