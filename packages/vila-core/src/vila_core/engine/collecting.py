"""Adds to the answers what a step has chosen: tokens of those that write, and codes of those that draw."""

import time
from typing import TYPE_CHECKING

from vila_core.engine.answer import Piece
from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.failures import as_error, not_finite
from vila_core.engine.known_prompts import KnownPrompts
from vila_core.engine.request import Request
from vila_core.engine.request_lists import RequestLists
from vila_core.engine.switching import ModeSwitch
from vila_core.language.page_size import PAGE_SIZE

if TYPE_CHECKING:
    from vila_core.engine.runner import PendingStep, Runner


class Collector:
    """Adds chosen tokens and codes to answers, and ends those that are complete.

    Args:
        requests: by state.
        known_prompts: those of companions.
        switch: lets a request change between writing and drawing; None if the model only writes.
    """

    def __init__(self, requests: RequestLists, known_prompts: KnownPrompts, switch: ModeSwitch | None):
        self._requests = requests
        self._known_prompts = known_prompts
        self._switch = switch

    def collect(self, runner: "Runner", step: "PendingStep") -> None:
        """Wait for what a step chooses, and add it to the answers. A failure ends only its own request.

        The step may be older than a request's change between writing and drawing; what it chose for it is dropped then.
        """
        for request, token_id, logprobs in step.tokens():
            if request.is_writing:
                try:
                    self._push(runner, request, token_id, logprobs)
                except Exception as error:  # noqa: BLE001 - of its text or grammar
                    self._fail(runner, request, error)
        for request, codes in () if step.drawn is None else step.drawn.codes():
            if request.is_drawing:
                try:
                    self._push_codes(runner, request, codes)
                except Exception as error:  # noqa: BLE001 - of its picture
                    self._fail(runner, request, error)

    def _fail(self, runner: "Runner", request: Request, error: Exception) -> None:
        if not request.has_ended:
            self._requests.end(runner, request, as_error(error))

    def _push(self, runner: "Runner", request: Request, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Add a token to an answer."""
        if token_id < 0:
            self._requests.end(runner, request, not_finite(runner.dtype, request.answer.length + 1))
            return
        self._remember(runner, request)
        if request.grammar is not None and request.grammar.dead_end is not None:
            self._requests.end(runner, request, request.grammar.dead_end)
            return
        piece = request.answer.push(token_id, logprobs)
        request.pieces.append(piece)
        if piece.finish_reason is not None:
            self._requests.end(runner, request)
            return
        request.note_token(token_id)
        if self._switch is not None:
            self._switch.note_token(runner, request, token_id)

    def _push_codes(self, runner: "Runner", request: Request, codes: tuple[int, ...] | None) -> None:
        """Add the codes of a position to a picture."""
        assert request.drawing is not None
        if codes is None:
            self._requests.end(runner, request, not_finite(runner.dtype, request.answer.length + 1))
            return
        for one in request.sequences:
            self._remember(runner, one)
            one.answer.push_codes(codes)
        request.drawing.codes.append(codes)
        if request.drawing.left:
            request.pieces.append(Piece(None, "", codes=codes))
        else:
            assert self._switch is not None, "only a model with a head draws"
            self._switch.end_picture(runner, request, codes)

    def _remember(self, runner: "Runner", request: Request) -> None:
        """Let other requests reuse the full pages. Called when a usable token shows that their values are finite."""
        if not request.times.first_token:
            request.times.first_token = time.perf_counter()
        if request.keys is None:
            return
        if request.prompt_hidden is not None:
            self._known_prompts.keep(runner, request, request.prompt_hidden)
            request.prompt_hidden = None
        known = min(len(request.keys.keys), request.num_tokens // PAGE_SIZE)
        for index in range(request.remembered // PAGE_SIZE, known):
            runner.pool.keep(request.pages[index], request.keys.keys[index])
        request.remembered = max(request.remembered, known * PAGE_SIZE)
