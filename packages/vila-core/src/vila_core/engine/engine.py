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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vila_core.engine.answer import Answer, Generated
from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.failures import as_error, check_biases, check_capacity, check_drafting, not_finite, room
from vila_core.engine.inputs import EngineInput
from vila_core.engine.limits import EngineConfig, EngineStats, QueueFullError
from vila_core.engine.lookup import PromptLookup
from vila_core.engine.pages import PagePool
from vila_core.engine.prefix import PageKeys
from vila_core.engine.request import Handle, Request, State, cancelled
from vila_core.engine.runner import PendingStep, Runner, choose_runner, require_cache_dtype
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.sharing import CHUNKS_AT_ONCE, share
from vila_core.errors import GenerationError
from vila_core.language import LanguageModel
from vila_core.language.divided import current
from vila_core.language.paged_cache import PAGE_SIZE
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vila_core.engine.grammar import Grammar


LoadMedia = Callable[[Sequence[tuple[EngineInput, int, int]], int], None]
"""Encodes media of prompts, together at most so many tiles. Each prompt comes with the positions from which and up to
which it is read next, and is not read past media that are still to be encoded then."""
TILE_CHUNKS_AT_ONCE = 8
"""Times `chunk_tiles` that are encoded in a step while nobody is answered."""


class Engine:
    """Answers requests with one model. Its methods may be called from any thread.

    Args:
        llm: the language model.
        tokenizer: turns tokens into text.
        stop_token_ids: tokens that end every answer.
        config: how much it does at once.
        load: encodes media together (see `LoadMedia`).

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
    ):
        self.config = config or EngineConfig()
        require_cache_dtype(llm, self.config)
        self._llm = llm
        self._tokenizer = tokenizer
        self._stop_token_ids = stop_token_ids
        self._load = load
        self._runner: Runner | None = None
        self._lock = threading.RLock()  # held during a step
        self._changed = threading.Condition()  # a step has ended
        self._door = threading.Lock()  # held while a request is put into the inbox
        self._inbox: deque[Request] = deque()
        self._queue: deque[Request] = deque()
        self._reading: list[Request] = []
        self._answering: list[Request] = []
        self._pending: deque[PendingStep] = deque()
        self._count = 0
        self._cached_tokens = 0
        self._preemptions = 0
        self._drafted_tokens = 0
        self._accepted_tokens = 0

    # -------------------------------------------------------------------------------------------- requests

    def submit(self, prompt: EngineInput, config: GenerationConfig) -> Handle:
        """Put a request into the queue.

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
        check_capacity(runner, len(prompt), answer.max_new_tokens)
        grammar = self._grammar(config, stops)
        lookup = PromptLookup.of(prompt, config, stops)
        if lookup is not None:
            check_drafting(runner, self._llm)
        shares = self.config.shares_prefixes and runner.reads_in_chunks
        keys = PageKeys(prompt.ids, prompt.media) if shares and prompt.ids is not None else None
        seed = random.getrandbits(62) if config.seed is None else config.seed
        with self._door:
            waiting = len(self._queue) + len(self._inbox)
            if waiting >= self.config.max_queue:
                raise QueueFullError(f"{waiting} requests wait already, which is the limit. Try again later.")
            request = Request(self._count, prompt, config, answer, grammar, keys, seed, lookup=lookup)
            self._count += 1
            self._inbox.append(request)
        return Handle(request, self._step_for, self._cancel)

    def _grammar(self, config: GenerationConfig, stops: frozenset[int]) -> "Grammar | None":
        if not config.json_mode and config.json_schema is None:
            return None
        from vila_core.engine.grammar import Grammar  # imported here because xgrammar is slow to import

        return Grammar.for_answer(config, self._tokenizer, self._llm.config.vocab_size, stops)

    def answer_all(self, prompts: Sequence[EngineInput], config: GenerationConfig) -> list[Generated | GenerationError]:
        """Answer prompts together. An answer that fails gives an error, and the others are completed.

        Raises:
            PromptError, GenerationError: as `submit` does.
            MediaError: media of a prompt cannot be encoded.
        """
        handles: list[Handle] = []
        try:
            for prompt in prompts:
                while len(self._queue) + len(self._inbox) >= self.config.max_queue:
                    self.step()
                handles.append(self.submit(prompt, config))
            return [_outcome(handle) for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    def stats(self) -> EngineStats:
        """Return what the engine is doing."""
        pool = PagePool(0) if self._runner is None else self._runner.pool
        return EngineStats(
            len(self._queue) + len(self._inbox),
            len(self._reading),
            len(self._answering),
            pool.num_pages,
            pool.num_used,
            pool.num_kept,
            self._cached_tokens,
            self._preemptions,
            self._drafted_tokens,
            self._accepted_tokens,
        )

    def clear_cache(self) -> None:
        """Forget what is kept for prompts that begin alike."""
        with self._lock:
            if self._runner is not None:
                self._runner.pool.clear()

    def while_idle(self, call: Callable[[], None]) -> None:
        """Call `call`, which may use the model, if there is no request; else do nothing."""

        @torch.inference_mode()
        def run() -> None:
            if not (self._inbox or self._queue or self._reading or self._answering or self._pending):
                with current(self._use_runner().device):
                    call()

        self._step_if_free(run)

    def _cancel(self, request: Request) -> None:
        """End a request; if another thread is in the middle of a step, that thread does it."""
        request.is_cancelled = True
        while not request.has_ended:
            if not self._step_if_free(self._drop_cancelled):
                self._wait(lambda: request.has_ended)

    # -------------------------------------------------------------------------------------------- steps

    def step(self) -> bool:
        """Let every request advance; return whether any is left."""
        with self._lock:
            is_any_left = self._step()
        with self._changed:
            self._changed.notify_all()
        return is_any_left

    def _step_for(self, request: Request) -> None:
        """Step until `request` has something new. If another thread steps, wait for that."""

        def has_news() -> bool:
            return bool(request.pieces) or request.has_ended

        def step() -> None:
            if not has_news():
                self._step()

        if not self._step_if_free(step):
            self._wait(has_news)

    def _step_if_free(self, step: Callable[[], None]) -> bool:
        """Call `step` unless another thread is stepping; return whether it was called.

        Nobody queues for the lock: a thread that steps again and again would rarely let the others have it.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            step()
        finally:
            self._lock.release()
            with self._changed:
                self._changed.notify_all()
        return True

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until another thread has stepped, unless the reason for waiting is over."""
        with self._changed:
            if not is_over():
                self._changed.wait(timeout=0.05)

    def _receive(self) -> None:
        """Take in the requests that were submitted meanwhile."""
        while self._inbox:
            self._queue.append(self._inbox.popleft())

    def _drop_cancelled(self) -> None:
        self._receive()
        for request in [*self._queue, *self._reading, *self._answering]:
            if request.is_cancelled:
                self._end(request, cancelled())

    @torch.inference_mode()
    def _step(self) -> bool:
        runner = self._use_runner()
        try:
            with current(runner.device):
                self._receive()
                self._admit(runner)
                self._read(runner)
                self._answer(runner)
                self._collect(runner, keep=1 if self._overlaps(runner) else 0)
                self._drop_cancelled()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the requests and not the engine
            self._abandon(as_error(error))
        except BaseException:  # Ctrl-C
            self._abandon(GenerationError("The answer was interrupted."))
            raise
        return bool(self._queue or self._reading or self._answering or self._pending)

    def _admit(self, runner: Runner) -> None:
        """Take requests from the queue while there are rows and pages."""
        if not self._queue:
            return
        unknown = [request for request in (*self._reading, *self._answering) if not request.times.first_token]
        coming = {key for request in unknown if request.keys for key in request.keys.keys}
        while self._queue and len(self._reading) + len(self._answering) < self.config.max_batch:
            request = self._queue[0]
            if not self._get_pages(runner, request, coming):
                break
            self._queue.popleft()
            request.state = State.READING
            request.times.admitted = request.times.admitted or time.perf_counter()  # a preempted one comes back
            self._reading.append(request)
            coming |= set(request.keys.keys if request.keys else ())

    def _get_pages(self, runner: Runner, request: Request, coming: set[bytes]) -> bool:
        """Give the request the pages of its prompt, those that are known included; return whether that worked."""
        tokens = request.num_tokens
        known = request.keys.keys[: (tokens - 1) // PAGE_SIZE] if request.keys else []
        found = runner.pool.find(known)
        # What another request is just computing is worth waiting for.
        waits = len(found) < len(known) and known[len(found)] in coming
        taken = (
            None if waits else runner.pool.take(runner.pages_for(tokens + 1) - len(found), found[-1] if found else None)
        )
        if taken is None:
            runner.pool.release(found)
            return False
        self._cached_tokens += len(found) * PAGE_SIZE
        request.pages = [*found, *taken]
        request.length = request.remembered = len(found) * PAGE_SIZE
        request.cached = min(request.length, len(request.prompt))
        return True

    def _encode(self, runner: Runner, reading: Sequence[Request]) -> None:
        """Encode media of requests together; if that fails, one by one, so that only the broken one fails.

        What is encoded is about to be read: the media of a long prompt are neither all in memory at once, nor do
        others wait for all of them.
        """
        waiting = [request for request in reading if request.length < len(request.prompt)]
        if self._load is None or not waiting:
            return
        begin = time.perf_counter()
        at_once = 1 if self._answering else CHUNKS_AT_ONCE
        ahead = self.config.chunk_tokens * at_once if runner.reads_in_chunks else self._llm.config.max_length
        tiles = self.config.chunk_tiles * (1 if self._answering else TILE_CHUNKS_AT_ONCE)
        try:
            self._load([(request.prompt, request.length, request.length + ahead) for request in waiting], tiles)
        except Exception as error:  # noqa: BLE001 - it ends this request only
            if len(waiting) == 1:
                self._end(waiting[0], as_error(error))
            else:
                for request in waiting:
                    self._encode(runner, [request])
            return
        for request in waiting:
            request.times.encoding += (time.perf_counter() - begin) / len(waiting)

    def _read(self, runner: Runner) -> None:
        """Read a part of the prompts, and choose the first token of those that are complete."""
        self._encode(runner, self._reading)
        complete: list[tuple[Request, Tensor]] = []
        for parts in self._parts(runner):
            complete += self._read_parts(runner, parts)
        if complete:
            self._start([request for request, _ in complete], torch.stack([hidden for _, hidden in complete]), runner)

    def _parts(self, runner: Runner) -> list[list[tuple[Request, int]]]:
        """Return which requests are read now, each up to which token, in groups that are read together."""
        if not runner.reads_in_chunks:
            return [[(one, one.num_tokens)] for one in self._reading if one.readable == one.num_tokens]
        return share(self._reading, self.config.chunk_tokens, others_wait=bool(self._answering))

    def _read_parts(self, runner: Runner, parts: Sequence[tuple[Request, int]]) -> list[tuple[Request, Tensor]]:
        """Read requests together; return those that are complete with the hidden states `[D]` of their last tokens."""
        try:
            embeds = [self._embed(runner, request, end) for request, end in parts]
            hidden = runner.read([request for request, _ in parts], embeds)  # [n, D]
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends one request only
            if len(parts) == 1:
                self._end(parts[0][0], as_error(error))
                return []
            return [done for part in parts for done in self._read_parts(runner, [part])]
        for request, end in parts:
            request.length = end
            request.prompt.release(end)
        return [
            (request, last) for (request, end), last in zip(parts, hidden, strict=True) if end == request.num_tokens
        ]

    def _embed(self, runner: Runner, request: Request, end: int) -> Tensor:
        """Return the embeddings of the request's tokens from `length` to `end`, those of its answer included."""
        start, own = request.length, len(request.prompt)
        parts: list[Tensor] = []
        if start < own:
            parts.append(request.prompt.embed(start, min(end, own)))
        if end > own:
            ids = request.answer.token_ids[max(start - own, 0) : end - own]
            parts.append(self._llm.embed(torch.tensor([ids], device=runner.device))[0])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _start(self, requests: list[Request], hidden: Tensor, runner: Runner) -> None:
        """Choose the first token of requests whose prompts have been read, `hidden [n, D]`."""
        for request in requests:
            self._reading.remove(request)
            self._answering.append(request)
            request.state = State.ANSWERING
            request.chosen += 1
        self._pending.append(runner.start(requests, hidden))

    def _answer(self, runner: Runner) -> None:
        """Launch the step that reads the last token of each answer and chooses the next."""
        if any(request.needs_last_token for request in self._answering):
            self._collect(runner)
        for request in list(self._answering):
            if request.state is State.ANSWERING:
                self._make_room(runner, request)
        if any(request.chosen >= request.answer.max_new_tokens for request in self._answering):
            self._collect(runner)  # these end
        if not self._answering:
            return
        drafts = self._draft(runner)
        step = runner.step(drafts)
        self._pending.append(step)
        for request in step.requests:
            request.length += 1
            request.chosen += 1
        for request, draft in drafts.items():
            self._count_draft(request, len(draft), step.requests.count(request) - 1)

    def _draft(self, runner: Runner) -> dict[Request, list[int]]:
        """Return what the next tokens of requests may be, as far as pages without users are left for them."""
        drafts: dict[Request, list[int]] = {}
        for request in self._answering:
            left = request.answer.max_new_tokens - request.chosen - 1
            draft = request.lookup.draft(left) if request.lookup is not None and left > 0 else []
            missing = runner.pages_for(request.length + 1 + len(draft)) - len(request.pages)
            if missing > 0 and runner.pool.num_available >= missing + len(self._answering):
                request.pages += runner.pool.take(missing, request.pages[-1]) or []
            draft = draft[: len(request.pages) * PAGE_SIZE - request.length - 1]
            if draft:
                drafts[request] = draft
        return drafts

    def _count_draft(self, request: Request, drafted: int, accepted: int) -> None:
        assert request.lookup is not None, "only a lookup drafts"
        request.lookup.learn(drafted, accepted)
        request.drafted += drafted
        request.accepted += accepted
        self._drafted_tokens += drafted
        self._accepted_tokens += accepted

    def _make_room(self, runner: Runner, request: Request) -> None:
        """Give the request a page for its next token. Without a free page, the youngest request gives up its own."""
        while request.state is State.ANSWERING and runner.pages_for(request.length + 1) > len(request.pages):
            taken = runner.pool.take(1, request.pages[-1] if request.pages else None)
            if taken is not None:
                request.pages += taken
                return
            self._collect(runner)
            running = [*self._reading, *self._answering]
            if running:
                self._preempt(runner, max(running, key=lambda other: other.number))

    def _preempt(self, runner: Runner, request: Request) -> None:
        """Send a request back to the queue; later it reads its prompt and its answer so far again."""
        self._leave(request)
        self._preemptions += 1
        request.state = State.QUEUED
        request.chosen = len(request.answer.token_ids)
        self._queue.appendleft(request)

    def _overlaps(self, runner: Runner) -> bool:
        """Whether the next step may be launched before the tokens of the last are known."""
        return runner.overlaps and not any(request.needs_last_token for request in self._answering)

    def _collect(self, runner: Runner, keep: int = 0) -> None:
        """Take in the tokens of all launched steps but the last `keep`."""
        while len(self._pending) > keep:
            step = self._pending.popleft()
            for request, token_id, logprobs in step.tokens():
                if request.has_ended:
                    continue
                if token_id < 0:
                    self._end(request, not_finite(step.dtype, len(request.answer.token_ids) + 1))
                    continue
                try:
                    self._push(request, token_id, logprobs, runner)
                except Exception as error:  # noqa: BLE001 - of its text or grammar: it ends this request only
                    if not request.has_ended:
                        self._end(request, as_error(error))

    def _push(self, request: Request, token_id: int, logprobs: TokenLogprobs | None, runner: Runner) -> None:
        """Add a token to an answer."""
        if not request.times.first_token:
            request.times.first_token = time.perf_counter()
        self._remember(request, runner)
        if request.grammar is not None and request.grammar.dead_end is not None:
            self._end(request, request.grammar.dead_end)
            return
        piece = request.answer.push(token_id, logprobs)
        request.pieces.append(piece)
        if piece.finish_reason is not None:
            self._end(request)
            return
        if request.grammar is not None:
            request.grammar.push(token_id)
        if request.keys is not None:
            request.keys.push(token_id)
        if request.lookup is not None:
            request.lookup.push(token_id)

    def _remember(self, request: Request, runner: Runner) -> None:
        """Let other requests find the full pages. Called when a token has shown that their values are finite."""
        if request.keys is None:
            return
        known = min(len(request.keys.keys), request.num_tokens // PAGE_SIZE)
        for index in range(request.remembered // PAGE_SIZE, known):
            runner.pool.keep(request.pages[index], request.keys.keys[index])
        request.remembered = max(request.remembered, known * PAGE_SIZE)

    # -------------------------------------------------------------------------------------------- ends

    def _end(self, request: Request, error: Exception | None = None) -> None:
        """Let a request go: with an error, or with the answer that it has."""
        request.error = error
        request.prompt.release(len(request.prompt))
        if request.state is State.QUEUED:
            self._queue.remove(request)
        else:
            self._leave(request)
        request.state = State.ENDED
        request.times.ended = time.perf_counter()

    def _leave(self, request: Request) -> None:
        """Take the request's row and pages away."""
        runner = self._use_runner()
        if request.state is State.ANSWERING:
            self._answering.remove(request)
        else:
            self._reading.remove(request)
        runner.leave(request)
        runner.pool.release(request.pages)
        request.pages = []

    def _abandon(self, error: Exception) -> None:
        """End every request, since the state of the rows is unknown. The engine continues with an empty cache."""
        self._receive()
        for request in [*self._queue, *self._reading, *self._answering]:
            request.prompt.release(len(request.prompt))
            request.error, request.state, request.times.ended = error, State.ENDED, time.perf_counter()
        self._queue.clear()
        self._reading.clear()
        self._answering.clear()
        self._pending.clear()
        self._runner = None

    def _use_runner(self) -> Runner:
        runner = self._runner
        if runner is None:
            with self._lock:
                runner = self._runner = self._runner or choose_runner(self._llm, self.config)
        return runner


def _outcome(handle: Handle) -> Generated | GenerationError:
    try:
        return handle.result()
    except GenerationError as error:
        return error
