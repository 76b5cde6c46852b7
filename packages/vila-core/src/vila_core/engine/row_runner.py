"""The part that runners share: requests have rows without gaps, and a step advances all of them.

n requests, D width
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.engine.drawing_step import DrawingStep
from vila_core.engine.row_order import RowOrder
from vila_core.engine.runner import Logprobs, PendingStep
from vila_core.generation.heads import GenerationHead
from vila_core.language import LanguageModel
from vila_core.language.paged_rows import ReadyTokens, StepKind
from vila_core.language.paged_step import PagedStep, PendingTokens
from vila_core.language.read_ahead import TokensAhead

if TYPE_CHECKING:
    from vila_core.engine.request import Request


class RowRunner:
    """The part that runners share: requests in rows without gaps.

    Args:
        llm: the language model.
        step: computes.
        weight: any of the model's, for its device and dtype.
        head: draws; None if the model only writes.
    """

    def __init__(self, llm: LanguageModel, step: PagedStep, weight: Tensor, head: GenerationHead | None):
        self._llm = llm
        self._step = step
        self.device = weight.device
        self.dtype = weight.dtype
        self._order = RowOrder(step.rows)
        self._drawing = None if head is None else DrawingStep(llm, step, weight, head, self._order)
        self._kind: StepKind | None = None  # what the rows that write need; None when they have changed

    def start(self, requests: "Sequence[Request]", hidden: Tensor) -> PendingStep:
        """See `Runner`."""
        for request in requests:
            self._order.add(request, draws=False)
        self._kind = None
        kind = self._restrict(requests, StepKind.of([request.sampling for request in requests]))
        chosen = self._step.choose([request.row for request in requests], self._llm.logits(hidden), kind)
        return self._pending(tuple(requests), chosen)

    def start_drawing(self, requests: "Sequence[Request]", hidden: Tensor) -> PendingStep:
        """See `Runner`."""
        assert self._drawing is not None, "only a model with a head draws"
        self._kind = None
        return PendingStep((), NOTHING, self.dtype, drawn=self._drawing.start(requests, hidden))

    def step(self, drafts: "Mapping[Request, Sequence[int]]") -> PendingStep:
        """See `Runner`."""
        self._order.update_pages()
        if self._kind is None:
            self._kind = StepKind.of([request.sampling for request in self._order.writing])
        if self._order.num_drawing:
            return self._step_and_draw(self._kind)
        if drafts:
            return self._check(drafts, self._kind)
        kind = self._restrict(self._order.requests, self._kind)
        return self._pending(tuple(self._order.requests), self._step.launch(len(self._order.requests), kind))

    def _step_and_draw(self, kind: StepKind) -> PendingStep:
        """A step in which some rows draw; the language model reads what all rows read next together."""
        assert self._drawing is not None, "only a model with a head draws"
        writing = self._order.writing
        if not writing:
            return PendingStep((), NOTHING, self.dtype, drawn=self._drawing.step())
        drawn, hidden = self._drawing.step_with_others()
        kind = self._restrict(writing, kind)
        rows = range(self._order.num_drawing, len(self._order.requests))
        pending = self._pending(tuple(writing), self._step.choose(rows, self._llm.logits(hidden), kind))
        return replace(pending, drawn=drawn)

    def _check(self, drafts: "Mapping[Request, Sequence[int]]", kind: StepKind) -> PendingStep:
        """Read the last token of every request and its draft; let it continue with what the model chooses itself."""
        rows = self._step.rows
        ids: list[list[int]] = []
        masks: list[Tensor] = []
        for request in self._order.requests:
            draft = drafts.get(request, ())
            allowed: Sequence[Tensor | None] = [None] * (1 + len(draft))
            if request.grammar is not None:
                allowed = request.grammar.allowed_along(draft)
                kind = replace(kind, masks=True)
            ids.append([request.answer.token_ids[-1], *draft[: len(allowed) - 1]])
            masks += [(_ALL if one is None else one).expand(rows.allowed.shape[1]) for one in allowed]
        starts = [request.length for request in self._order.requests]
        ahead = TokensAhead(ids, starts, torch.stack(masks) if kind.masks else None)
        found = self._step.read_ahead(ahead, kind)
        chosen = found.tokens()
        agreed = ahead.agreed(chosen)
        rows.advance([[chosen[place] for place in places] for places in agreed], penalizes=kind.penalizes)
        index = torch.tensor([place for places in agreed for place in places], device=self.device)
        requests = [request for request, places in zip(self._order.requests, agreed, strict=True) for _ in places]
        return self._pending(requests, ReadyTokens(found.logits[index], found.chosen[index]))

    def leave(self, request: "Request") -> None:
        """See `Runner`."""
        if request.row >= 0:
            self._kind = None
            self._order.remove(request)

    def _restrict(self, requests: "Sequence[Request]", kind: StepKind) -> StepKind:
        """Restrict the next tokens of requests that follow a grammar; return the kind of a step that does so."""
        for request in requests:
            if request.grammar is not None:
                allowed = request.grammar.allowed()
                self._step.rows.allow(request.row, _ALL if allowed is None else allowed)
                kind = replace(kind, masks=True)
        return kind

    def _pending(self, requests: "Sequence[Request]", chosen: PendingTokens) -> PendingStep:
        wanted = any(request.config.logprobs for request in requests)
        logprobs = Logprobs(chosen.logits.float().log_softmax(dim=-1)) if wanted else None
        return PendingStep(requests, chosen, self.dtype, logprobs)


NOTHING = ReadyTokens(torch.empty(0, 0), torch.empty(0, dtype=torch.int64))
"""The tokens of a step in which nobody writes."""
_ALL = torch.tensor(-1, dtype=torch.int32)
"""A mask that allows every token."""
