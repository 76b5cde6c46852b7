"""The engine: continuous batching of requests over one model.

Every step, requests join from the queue, prompts are read a chunk at a time, and each answer grows by one token.
Requests leave as they end. The steps of a request:

    QUEUED     waits for a row and for pages of the KV cache
    READING    its media and its prompt go through the model in chunks, between the steps of the others
    ANSWERING  it has a row, and gets one token a step
    ENDED      its full pages are kept for prompts that begin alike

The engine decides who is read and who is answered; a runner (`runner.py`) computes.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.engine.admission import Admission
from vila_core.engine.answer import Answer, Generated, Piece
from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.drafts import Drafts
from vila_core.engine.drawing import DrawingRequest, Drawn, OutputModes
from vila_core.engine.failures import (
    as_error,
    check_biases,
    check_capacity,
    check_drafting,
    check_drawing,
    not_finite,
    room,
)
from vila_core.engine.inputs import EngineInput
from vila_core.engine.known_prompts import KnownPrompts
from vila_core.engine.limits import EngineConfig, EngineStats, QueueFullError
from vila_core.engine.lookup import PromptLookup
from vila_core.engine.pages import PagePool
from vila_core.engine.pictures import Pictures
from vila_core.engine.prefix import PageKeys
from vila_core.engine.reading import LoadMedia, Reader
from vila_core.engine.request import Handle, Request, State, cancelled
from vila_core.engine.roster import Roster, release
from vila_core.engine.runner import PendingStep, Runner, choose_runner, require_cache_dtype
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.turns import Turns
from vila_core.errors import GenerationError
from vila_core.language import LanguageModel
from vila_core.language.divided import current
from vila_core.language.page_size import PAGE_SIZE
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vila_core.engine.grammar import Grammar


class Engine:
    """Answers requests with one model. Its methods may be called from any thread.

    Args:
        llm: the language model.
        tokenizer: turns tokens into text.
        stop_token_ids: tokens that end every answer.
        config: how much it does at once.
        load: encodes media together (see `LoadMedia`).
        modes: what the model can make besides text.

    Raises:
        ConfigError: the language model cannot have the KV cache that `config` asks for.
    """

    def __init__(
        self,
        llm: LanguageModel,
        tokenizer: Tokenizer,
        stop_token_ids: frozenset[int],
        config: EngineConfig | None = None,
        load: LoadMedia | None = None,
        modes: OutputModes | None = None,
    ):
        self.config = config or EngineConfig()
        require_cache_dtype(llm, self.config)
        self._llm = llm
        self._tokenizer = tokenizer
        self._stop_token_ids = stop_token_ids
        self._head = None if modes is None else modes.head
        self._pictures = None if modes is None else Pictures(modes, llm, tokenizer)
        self._runner: Runner | None = None
        self._turns = Turns()
        self._door = threading.Lock()  # held while a request is put into the inbox
        self._inbox: deque[Request] = deque()
        self._roster = Roster()
        self._known_prompts = KnownPrompts()
        self._admission = Admission(self._roster, self.config.max_batch, self._known_prompts)
        self._reader = Reader(llm, self.config, load, modes, self._end)
        self._drafts = Drafts()
        self._pending: deque[PendingStep] = deque()
        self._count = 0
        self._preemptions = 0

    # -------------------------------------------------------------------------------------------- requests

    def submit(self, prompt: EngineInput, config: GenerationConfig, drawing: DrawingRequest | None = None) -> Handle:
        """Put a request into the queue.

        Args:
            prompt: what the model reads. If it ends with a start token, the answer begins with a picture.
            config: how to answer.
            drawing: how to draw.

        Raises:
            PromptError: the prompt is empty or leaves no room in the context.
            GenerationError: the JSON schema cannot be followed, `logit_bias` names a token that does not exist, or the
                KV cache is too small for the request.
            QueueFullError: `max_queue` requests wait already.
        """
        check_biases(config, self._llm.config.vocab_size)
        stops = self._stop_token_ids | frozenset(config.stop_token_ids)
        most = room(len(prompt), self._llm.config.max_length)
        answer = Answer(config, self._tokenizer, stops, min(config.max_new_tokens, most))
        runner = self._use_runner()
        keys = self._keys(runner, prompt)
        seed = random.getrandbits(62) if config.seed is None else config.seed
        request = Request(0, prompt, config, answer, self._grammar(config, stops), keys, seed, asked_drawing=drawing)
        kind = None if self._pictures is None else self._pictures.kind_after(prompt.ids)
        if self._pictures is None or kind is None:
            check_capacity(runner, len(prompt), answer.max_new_tokens)
        else:
            self._pictures.begin(request, kind, lambda companion: self._keys(runner, companion))
            check_drawing(runner, request, self._llm.config.max_length, self.config.max_batch)
        request.lookup = PromptLookup.of(prompt, config, stops)
        if request.lookup is not None:
            check_drafting(runner, self._llm)
        with self._door:
            if self._num_waiting >= self.config.max_queue:
                raise QueueFullError(f"{self._num_waiting} requests wait already, which is the limit. Try again later.")
            request.number = self._count
            self._count += 1
            self._inbox.append(request)
        return Handle(request, self._step_for, self._cancel)

    def submit_when_free(
        self, prompt: EngineInput, config: GenerationConfig, drawing: DrawingRequest | None = None
    ) -> Handle:
        """Do as `submit`, but step while the queue is full."""
        while True:
            while self._num_waiting >= self.config.max_queue:
                self.step()
            with suppress(QueueFullError):  # another thread was faster
                return self.submit(prompt, config, drawing)

    @property
    def _num_waiting(self) -> int:
        return len(self._roster.queue) + len(self._inbox)

    def _grammar(self, config: GenerationConfig, stops: frozenset[int]) -> "Grammar | None":
        if not config.json_mode and config.json_schema is None:
            return None
        from vila_core.engine.grammar import Grammar  # imported here because xgrammar is slow to import

        return Grammar.for_answer(config, self._tokenizer, self._llm.config.vocab_size, stops)

    def _keys(self, runner: Runner, prompt: EngineInput) -> PageKeys | None:
        """Return the keys of the prompt's pages; None if they are not shared."""
        shares = self.config.shares_prefixes and runner.reads_in_chunks
        return PageKeys(prompt.ids, prompt.media) if shares and prompt.ids is not None else None

    def answer_all(self, prompts: Sequence[EngineInput], config: GenerationConfig) -> list[Generated | GenerationError]:
        """Answer prompts together. An answer that fails gives an error, and the others are completed.

        Raises:
            PromptError, GenerationError: as `submit` does.
            MediaError: media of a prompt cannot be encoded.
        """
        handles: list[Handle] = []
        try:
            for prompt in prompts:
                handles.append(self.submit_when_free(prompt, config))  # noqa: PERF401 - those so far are cancelled
            return [_outcome(handle) for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    def stats(self) -> EngineStats:
        """Return what the engine is doing."""
        pool = PagePool(0) if self._runner is None else self._runner.pool
        return EngineStats(
            self._num_waiting,
            len(self._roster.reading),
            len(self._roster.answering),
            pool.num_pages,
            pool.num_used,
            pool.num_kept,
            self._admission.cached_tokens,
            self._preemptions,
            self._drafts.drafted,
            self._drafts.accepted,
        )

    def clear_cache(self) -> None:
        """Forget what is kept for prompts that begin alike."""
        with self._turns.lock:
            if self._runner is not None:
                self._runner.pool.clear()
            self._known_prompts.clear()

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """Answer the requests of a `with` block without traces: `stats` does not count them, the cache is empty then.

        There should be no other requests meanwhile.
        """
        counts = self._admission.cached_tokens, self._preemptions
        try:
            yield
        finally:
            self.clear_cache()
            self._admission.cached_tokens, self._preemptions = counts

    def while_idle(self, call: Callable[[], None]) -> None:
        """Call `call`, which may use the model, if there is no request; else do nothing."""

        @torch.inference_mode()
        def run() -> None:
            if not (self._inbox or self._is_busy):
                with current(self._use_runner().device):
                    call()

        self._turns.take_if_free(run)

    def _cancel(self, request: Request) -> None:
        """End a request; if another thread is in the middle of a step, that thread does it."""
        request.is_cancelled = True
        while not request.has_ended:
            if not self._turns.take_if_free(self._drop_cancelled):
                self._turns.wait(lambda: request.has_ended)

    # -------------------------------------------------------------------------------------------- steps

    def step(self) -> bool:
        """Let every request advance; return whether any is left."""
        return self._turns.take(self._step)

    def _step_for(self, request: Request) -> None:
        """Step until `request` has something new. If another thread steps, wait for that."""

        def has_news() -> bool:
            return bool(request.pieces) or request.has_ended

        def step() -> None:
            if not has_news():
                self._step()

        if not self._turns.take_if_free(step):
            self._turns.wait(has_news)

    @property
    def _is_busy(self) -> bool:
        """Whether there is a request, or a step whose tokens are not known."""
        return bool(self._pending) or any(True for _ in self._roster)

    def _receive(self) -> None:
        """Take in the requests that were submitted meanwhile."""
        while self._inbox:
            self._roster.queue.append(self._inbox.popleft())

    def _drop_cancelled(self) -> None:
        self._receive()
        for request in list(self._roster):
            if request.is_cancelled:
                self._end(request, cancelled())

    @torch.inference_mode()
    def _step(self) -> bool:
        runner = self._use_runner()
        try:
            with current(runner.device):
                self._receive()
                self._admission.admit(runner)
                self._cut_what_never_fits()
                self._read(runner)
                self._answer(runner)
                self._collect(runner, keep=1 if self._overlaps(runner) else 0)
                self._drop_cancelled()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the requests and not the engine
            self._abandon(as_error(error))
        except BaseException:  # Ctrl-C
            self._abandon(GenerationError("The answer was interrupted."))
            raise
        return self._is_busy

    def _cut_what_never_fits(self) -> None:
        """End the answer of the next request if even an idle engine lacks pages or rows for it.

        What is checked when a request is submitted does not count pictures that the model begins on its own.
        """
        if self._roster.queue and not self._roster.running and not self._pending:
            request = self._roster.queue[0]
            request.pieces.append(request.answer.end("length"))
            self._end(request)

    def _read(self, runner: Runner) -> None:
        """Read a part of the prompts, and choose the first tokens or codes after those that are complete."""
        if not self._roster.reading:
            return
        unread = self._roster.unread
        others_wait = bool(self._roster.answering) or len(unread) > 1
        for request, hidden in self._reader.read(runner, unread, others_wait=others_wait):
            request.last_hidden = hidden
            if request.leader is not None and not request.answer.length:
                request.prompt_hidden = hidden
        complete = [request for request in self._roster.reading if request.is_read]
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
            self._roster.answer(request)
            request.count_step()
            hidden += request.take_hidden()
        return torch.stack(hidden)

    def _answer(self, runner: Runner) -> None:
        """Launch the step that reads the last token of each answer and chooses the next."""
        answering = self._roster.answering
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
        drafts = {} if draws else self._drafts.make(runner, answering)
        step = runner.step(drafts)
        self._pending.append(step)
        for request in step.requests:
            request.length += 1
            request.count_step()
        for request in () if step.drawn is None else step.drawn.requests:
            request.length += 1
            request.count_step()
        for request, draft in drafts.items():
            self._drafts.count(request, len(draft), step.requests.count(request) - 1)

    def _make_room(self, runner: Runner, request: Request) -> None:
        """Give the request a page for its next token. Without a free page, the youngest request gives up its own."""
        while request.state is State.ANSWERING and runner.pages_for(request.length + 1) > len(request.pages):
            taken = runner.pool.take(1, request.pages[-1] if request.pages else None)
            if taken is not None:
                request.pages += taken
                return
            self._collect(runner)
            if running := self._roster.running:
                self._preemptions += 1
                self._roster.requeue(runner, max(running, key=lambda other: other.number))

    def _overlaps(self, runner: Runner) -> bool:
        """Whether the next step may be launched before the tokens of the last are known."""
        return runner.overlaps and not any(request.needs_last_token for request in self._roster.answering)

    # -------------------------------------------------------------------------------------------- results

    def _collect(self, runner: Runner, keep: int = 0) -> None:
        """Take in the tokens of all launched steps but the last `keep`."""
        while len(self._pending) > keep:
            step = self._pending.popleft()
            for request, token_id, logprobs in step.tokens():
                # The step may be older than the request's change between writing and drawing.
                if request.is_writing:
                    self._take(request, lambda t=token_id, p=logprobs, r=request: self._push(r, t, p, runner))
            for request, codes in () if step.drawn is None else step.drawn.codes():
                if request.is_drawing:
                    self._take(request, lambda c=codes, r=request: self._push_codes(r, c, runner))

    def _take(self, request: Request, push: Callable[[], None]) -> None:
        """Let a request take in what was chosen for it; a failure ends only this request."""
        try:
            push()
        except Exception as error:  # noqa: BLE001 - of its text or grammar
            if not request.has_ended:
                self._end(request, as_error(error))

    def _push(self, request: Request, token_id: int, logprobs: TokenLogprobs | None, runner: Runner) -> None:
        """Add a token to an answer."""
        if token_id < 0:
            self._end(request, not_finite(runner.dtype, request.answer.length + 1))
            return
        self._remember(request, runner)
        if request.grammar is not None and request.grammar.dead_end is not None:
            self._end(request, request.grammar.dead_end)
            return
        piece = request.answer.push(token_id, logprobs)
        request.pieces.append(piece)
        if piece.finish_reason is not None:
            self._end(request)
            return
        request.note_token(token_id)
        if self._pictures is not None and (kind := self._pictures.kind_after((token_id,))) is not None:
            self._begin_picture(request, kind, runner)

    def _push_codes(self, request: Request, codes: tuple[int, ...] | None, runner: Runner) -> None:
        """Add the codes of a position to a picture."""
        assert request.drawing is not None
        if codes is None:
            self._end(request, not_finite(runner.dtype, request.answer.length + 1))
            return
        for one in request.sequences:
            self._remember(one, runner)
            one.answer.push_codes(codes)
        request.drawing.codes.append(codes)
        if request.drawing.left:
            request.pieces.append(Piece(None, "", codes=codes))
        else:
            self._end_picture(request, codes, runner)

    def _remember(self, request: Request, runner: Runner) -> None:
        """Let other requests find the full pages. Called when a token has shown that their values are finite."""
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

    # -------------------------------------------------------------------------------------------- pictures

    def _begin_picture(self, request: Request, kind: str, runner: Runner) -> None:
        """Let a request that has written a start token draw."""
        assert self._pictures is not None
        if request.num_tokens + self._pictures.positions(kind) >= self._llm.config.max_length:
            request.pieces.append(request.answer.end("length"))
            self._end(request)
            return
        self._roster.leave_rows(runner, request)
        self._pictures.begin(request, kind, lambda companion: self._keys(runner, companion))
        self._read_again(request, runner)

    def _end_picture(self, request: Request, codes: tuple[int, ...], runner: Runner) -> None:
        """End a picture; the request has ended then, or writes again."""
        assert request.drawing is not None
        text, drawn = request.answer.push_drawn(Drawn(request.drawing.kind, tuple(request.drawing.codes)))
        if request.drawing.is_all:
            request.pieces.append(replace(request.answer.end("stop"), codes=codes, drawn=drawn))
            self._end(request)
            return
        request.pieces.append(Piece(None, text, codes=codes, drawn=drawn))
        self._roster.leave_rows(runner, request)
        if request.companion is not None:
            release(runner, request.companion)
        request.drawing = request.companion = None
        request.keys = None  # the pages that follow hold what no token ids describe
        self._read_again(request, runner)

    def _read_again(self, request: Request, runner: Runner) -> None:
        """Let a request without a row read its last token again, and go on from there in another mode."""
        request.chosen = len(request.answer.token_ids)
        request.length = request.num_tokens - 1 if runner.reads_in_chunks else 0
        if self._admission.extend(runner, request):
            self._roster.read(request)
        else:  # it waits for rows and pages as others do
            for one in request.sequences:
                release(runner, one)
            request.state = State.QUEUED
            self._roster.queue.appendleft(request)

    # -------------------------------------------------------------------------------------------- ends

    def _end(self, request: Request, error: Exception | None = None) -> None:
        """Let a request go: with an error, or with the answer that it has."""
        request = request.leader or request
        request.error = error
        for one in request.sequences:
            one.prompt.release(len(one.prompt))
        if request.state is State.QUEUED:
            self._roster.queue.remove(request)
        else:
            self._roster.leave(self._use_runner(), request)
        request.state = State.ENDED
        request.times.ended = time.perf_counter()

    def _abandon(self, error: Exception) -> None:
        """End every request, since the state of the rows is unknown. The engine continues with an empty cache."""
        self._receive()
        for request in self._roster:
            request.prompt.release(len(request.prompt))
            request.error, request.state, request.times.ended = error, State.ENDED, time.perf_counter()
        self._roster.clear()
        self._pending.clear()
        self._runner = None

    def _use_runner(self) -> Runner:
        runner = self._runner
        if runner is None:
            with self._turns.lock:
                runner = self._runner = self._runner or choose_runner(self._llm, self.config, self._head)
        return runner


def _outcome(handle: Handle) -> Generated | GenerationError:
    try:
        return handle.result()
    except GenerationError as error:
        return error
