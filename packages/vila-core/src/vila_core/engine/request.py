"""A request in the engine, and the handle that its submitter holds.

T tokens of the prompt
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from vila_core.engine.answer import Answer, Generated, Piece
from vila_core.engine.inputs import EngineInput
from vila_core.engine.lookup import PromptLookup
from vila_core.engine.prefix import PageKeys
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.language.paged_rows import RowSampling

if TYPE_CHECKING:
    from torch import Tensor

    from vila_core.engine.drawing import Drawing, DrawingRequest
    from vila_core.engine.grammar import Grammar


class State(Enum):
    """The state of a request."""

    QUEUED = "queued"
    READING = "reading its prompt"
    ANSWERING = "answering"
    ENDED = "ended"


@dataclass
class Times:
    """When a request passed each point, in seconds of `time.perf_counter`; `encoding` is a number of seconds."""

    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    encoding: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0


@dataclass(eq=False)
class Request:
    """A request and its state in the engine.

    Attributes:
        number: requests are numbered as they come.
        prompt: what the model reads.
        config: how to answer.
        answer: the answer so far, as the host knows it.
        grammar: which tokens may come next; None for all.
        keys: keys of the pages that the prompt and the answer fill; None if they are not shared.
        pages: the pages that it holds, in order.
        length: tokens whose keys and values are, or are being, computed.
        chosen: tokens of the answer that have been, or are being, chosen; the answer has those that the host has seen.
        cached: tokens of the prompt that were found in the cache.
        remembered: tokens in pages that others can find.
        lookup: drafts the next tokens; None if nobody asked for that.
        drafted, accepted: tokens that were drafted, and of these those that the model chose too.
        row: its row in the runner while it is answering.
        error: why there is no answer.
        is_cancelled: whether it is to end before its next token.
        pieces: of the answer, not yet read.
        times: when it passed each point.
        drawing: the picture that it is drawing; None while it writes.
        asked_drawing: how its pictures are drawn; None: as the model's own.
        num_drawings: pictures that it has begun.
        companion: reads the prompt that guides the picture away from itself; it has pages and a row of its own, and is
            read, answered and ended with this request.
        leader: of a companion.
        last_hidden: of its last token `[D]`, between reading and answering.
        prompt_hidden: of the last token of its prompt `[D]`, of a companion that has read it.
    """

    number: int
    prompt: EngineInput
    config: GenerationConfig
    answer: Answer
    grammar: "Grammar | None"
    keys: PageKeys | None
    seed: int
    state: State = State.QUEUED
    pages: list[int] = field(default_factory=list[int])
    length: int = 0
    chosen: int = 0
    cached: int = 0
    remembered: int = 0
    lookup: PromptLookup | None = None
    drafted: int = 0
    accepted: int = 0
    row: int = -1
    error: Exception | None = None
    is_cancelled: bool = False
    pieces: deque[Piece] = field(default_factory=deque[Piece])
    times: Times = field(default_factory=Times)
    drawing: "Drawing | None" = None
    asked_drawing: "DrawingRequest | None" = None
    num_drawings: int = 0
    companion: "Request | None" = None
    leader: "Request | None" = None
    last_hidden: "Tensor | None" = None
    prompt_hidden: "Tensor | None" = None

    @property
    def has_ended(self) -> bool:
        return (self.leader or self).state is State.ENDED

    @property
    def sequences(self) -> "tuple[Request, ...]":
        """The request and its companion, if it has one: each needs a row and pages."""
        return (self,) if self.companion is None else (self, self.companion)

    @property
    def is_writing(self) -> bool:
        """Whether the next token that is chosen for it is its own."""
        return self.state is State.ANSWERING and self.drawing is None

    @property
    def is_drawing(self) -> bool:
        """Whether the next codes that are chosen for it are its own."""
        return self.state is State.ANSWERING and self.drawing is not None

    @property
    def is_read(self) -> bool:
        """Whether the last tokens of all sequences have been read."""
        return all(one.last_hidden is not None for one in self.sequences)

    def take_hidden(self) -> "list[Tensor]":
        """Return the hidden states `[D]` of the last tokens, and forget them."""
        hidden = [one.last_hidden for one in self.sequences if one.last_hidden is not None]
        for one in self.sequences:
            one.last_hidden = None
        return hidden

    def count_step(self) -> None:
        """Note that one more token or position is being chosen."""
        if self.drawing is None:
            self.chosen += 1
        else:
            self.drawing.chosen += 1

    def note_token(self, token_id: int) -> None:
        """Let everything that follows the answer know its next token."""
        if self.grammar is not None:
            self.grammar.push(token_id)
        if self.keys is not None:
            self.keys.push(token_id)
        if self.lookup is not None:
            self.lookup.push(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether everything has been, or is being, chosen that it may choose, or draw, before something changes."""
        if self.drawing is not None:
            return self.drawing.chosen >= self.drawing.output.positions
        return self.chosen >= self.answer.max_new_tokens

    @property
    def tokens_ahead(self) -> int:
        """Tokens that it needs pages for before it is asked again: the next one, or all positions of its picture."""
        return 1 if self.drawing is None else self.drawing.left

    @property
    def most_tokens(self) -> int:
        """The tokens that it may have in the end."""
        drawn, drawing = self.answer.length - len(self.answer.token_ids), (self.leader or self).drawing
        return len(self.prompt) + self.answer.max_new_tokens + drawn + (drawing.left if drawing else 0)

    @cached_property
    def sampling(self) -> RowSampling:
        """How its tokens are chosen."""
        config = self.config
        return RowSampling(
            config.temperature, config.top_k, config.top_p, self.seed, config.repetition_penalty,
            config.presence_penalty, config.frequency_penalty, tuple(config.logit_bias.items()),
        )  # fmt: skip

    @property
    def needs_last_token(self) -> bool:
        """Whether a step for it can only be launched when its last token is known."""
        return self.grammar is not None or self.lookup is not None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.prompt) + self.answer.length

    @property
    def readable(self) -> int:
        """Up to which token it can be read now: all, unless media are still to be encoded."""
        own = len(self.prompt)
        ready = self.prompt.ready(self.length) if self.length < own else own
        return self.num_tokens if ready == own else ready

    def generated(self) -> Generated:
        """Return the finished answer, or raise the error that ended the request."""
        if self.error is not None:
            raise self.error
        answer, times = self.answer, self.times
        assert answer.finish_reason is not None, "the answer has not ended yet"
        return Generated(
            answer.token_ids,
            answer.text,
            answer.finish_reason,
            answer.logprobs,
            self.cached,
            times.encoding,
            times.first_token - times.admitted - times.encoding,
            times.ended - times.first_token,
            times.admitted - times.submitted,
            self.drafted,
            self.accepted,
            answer.parts,
        )


class Handle:
    """A submitted request. Iterate over it for the pieces of the answer, or wait for its `result`.

    The engine runs while somebody waits: whoever waits runs it for all, so that requests of several threads are
    answered together.
    """

    def __init__(self, request: Request, step: Callable[[Request], None], cancel: Callable[[Request], None]):
        self._request = request
        self._step = step
        self._cancel = cancel

    @property
    def has_ended(self) -> bool:
        """Whether there is a result, or an error."""
        return self._request.has_ended

    @property
    def state(self) -> str:
        """What happens to the request now."""
        return self._request.state.value

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces of the answer; the last one has a finish reason. An abandoned iterator cancels the request.

        Raises:
            GenerationError: after any number of pieces, if the answer fails or is cancelled.
        """
        try:
            while True:
                while self._request.pieces:
                    yield self._request.pieces.popleft()
                if self._request.has_ended:
                    break
                self._step(self._request)
        finally:
            self.cancel()
        if self._request.error is not None:
            raise self._request.error

    def take(self) -> list[Piece]:
        """Return the pieces that have not been read yet, without waiting.

        `result` has the error of an answer that fails. For programs in which one thread steps the engine for all.
        """
        pieces: list[Piece] = []
        while self._request.pieces:
            pieces.append(self._request.pieces.popleft())
        return pieces

    def result(self) -> Generated:
        """Return the finished answer.

        Raises:
            GenerationError: the answer fails or is cancelled.
        """
        try:
            while not self._request.has_ended:
                self._request.pieces.clear()  # nobody reads them
                self._step(self._request)
        finally:
            self.cancel()
        return self._request.generated()

    def cancel(self) -> None:
        """End the request now. One that has ended stays as it is."""
        self._cancel(self._request)


def cancelled() -> GenerationError:
    """Return the error of a request that was cancelled."""
    return GenerationError("The request was cancelled before its answer was complete.")
