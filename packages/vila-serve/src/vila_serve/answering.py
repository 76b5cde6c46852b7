"""The asyncio side of the engine: prompts are prepared in threads, one thread steps the engine, answers are streams."""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vila_core import Message, Vila
from vila_core.engine.answer import Piece
from vila_core.engine.completion import FinishReason, Timings, TokenLogprobs, Usage
from vila_core.engine.limits import EngineStats
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.time_tokens import TimeTokenStream
from vila_core.errors import PromptTooLongError
from vila_core.prompt import PreparedPrompt

Result = TypeVar("Result")
MAX_THREADS = 8
SECONDS_PER_EVENT = 0.0003
"""Each running answer makes the others' tokens wait that much longer for the event loop: so many events per second
leave the engine's thread most of the interpreter. A single answer gets each token at once."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadyPrompt:
    """A prompt that can be submitted, with its token counts."""

    prepared: PreparedPrompt
    prompt_tokens: int
    media_tokens: int


@dataclass(frozen=True)
class Delta:
    """What an answer has gained: text, and the log-probabilities of its tokens if they were asked for."""

    text: str
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])


@dataclass(frozen=True)
class Ending:
    """How an answer ended."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class RunningAnswer:
    """An answer that grows. Iterate over it once; when the iteration ends early, the request is cancelled.

    Attributes:
        prompt: what is answered.
        submitted, first_arrival, last_delivery: when it was submitted, when the first token came, and when the engine's
            thread last passed tokens on, in seconds of `time.perf_counter`.
        ending: how the answer ended; None until then.
    """

    def __init__(self, prompt: ReadyPrompt, handle: Handle, times: TimeTokenStream, wake: Callable[[], None]):
        self.prompt = prompt
        self.submitted = time.perf_counter()
        self.first_arrival: float | None = None
        self.last_delivery = 0.0
        self.ending: Ending | None = None
        self.handle = handle
        self.is_cancelled = False
        self._wake = wake
        self._text = _AnswerText(times)
        self._arrived: deque[Piece] = deque()
        self._has_ended = False
        self._news = asyncio.Event()

    def arrive(self, pieces: Sequence[Piece], has_ended: bool) -> None:
        """Take in what the engine has produced. Called in the event loop's thread."""
        if pieces and self.first_arrival is None:
            self.first_arrival = time.perf_counter()
        self._arrived.extend(pieces)
        self._has_ended = self._has_ended or has_ended
        self._news.set()

    def cancel(self) -> None:
        """End the request before its next token. One that has ended stays as it is."""
        if not self._has_ended and not self.is_cancelled:
            self.is_cancelled = True
            self._wake()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Yield the answer piece by piece; the pieces join to the text that `Vila.complete` returns.

        Raises:
            GenerationError: the answer failed.
        """
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                has_ended = self._has_ended
                pieces = [self._arrived.popleft() for _ in range(len(self._arrived))]
                text = "".join(map(self._text.push, [piece.text for piece in pieces]))
                if has_ended:
                    self.ending = self._end()  # raises the error of an answer that failed
                    text += self._text.finish()
                logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
                if text or logprobs:
                    yield Delta(text, logprobs)
                if has_ended:
                    return
        finally:
            self.cancel()

    def _end(self) -> Ending:
        generated = self.handle.result()
        usage = Usage(
            self.prompt.prompt_tokens, self.prompt.media_tokens, len(generated.token_ids), generated.cached_tokens
        )
        timings = Timings(
            self.prompt.prepared.seconds, generated.encode_seconds, generated.prefill_seconds, generated.decode_seconds
        )
        return Ending(generated.finish_reason, usage, timings)


class _AnswerText:
    """Streams text as `Vila.complete` returns it: with seconds for time tokens, and without spaces around it."""

    def __init__(self, times: TimeTokenStream):
        self._times = times
        self._held = ""
        self._has_begun = False

    def push(self, piece: str) -> str:
        """Add a piece; return the part that is certain. Space at the end is held back: the answer may end there."""
        text = self._held + self._times.push(piece)
        if not self._has_begun:
            text = text.lstrip()
        body = text.rstrip()
        self._has_begun = self._has_begun or bool(body)
        self._held = text[len(body) :]
        return body

    def finish(self) -> str:
        """Return the remaining text once no more will come."""
        text = self._held + self._times.finish()
        return text.rstrip() if self._has_begun else text.strip()


class Answering:
    """Answers the requests of an asyncio program with one model.

    Args:
        model: answers.
        max_context: most tokens of a prompt with its answer; None for the model's context.
        threads: how many prompts are prepared at a time.
    """

    def __init__(self, model: Vila, *, max_context: int | None = None, threads: int | None = None):
        self.model = model
        context = model.config.language_model.max_length
        self.max_context = context if max_context is None else min(max_context, context)
        self._engine = model.engine
        self._threads = ThreadPoolExecutor(threads or min(MAX_THREADS, os.cpu_count() or 1), "prepare")
        self._answers: set[RunningAnswer] = set()
        self._unwanted: deque[Handle] = deque()
        self._lock = threading.Lock()  # guards _answers
        self._wake = threading.Event()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._step_until_stopped, name="engine", daemon=True)

    # -------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the engine's thread. Call it in the event loop that will read the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Cancel what is left and end the thread."""
        self._is_stopping = True
        self._wake.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._thread.join)

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def stats(self) -> EngineStats:
        """Return what the engine is doing."""
        return self._engine.stats()

    # -------------------------------------------------------------------------------------------- requests

    async def prepare(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> ReadyPrompt:
        """Decode and tile the media, render the template and tokenize, in a thread. `tools` are in OpenAI's form.

        Raises:
            PromptTooLongError: the prompt leaves no room for an answer.
            PromptError, MediaError: as `Vila.prepare` does.
        """
        return await self._in_thread(lambda: self._prepare(messages, tools))

    def _prepare(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> ReadyPrompt:
        prepared = self.model.prepare_untrusted(messages, tools)
        counts = self.model.count_tokens(prepared)
        total, text = sum(counts.values()), counts["text"]
        if total >= self.max_context:
            raise PromptTooLongError(
                f"The prompt has {total:,} tokens ({text:,} of text, {total - text:,} of media), but "
                f"this server takes at most {self.max_context:,} for prompt and answer together. Shorten the text, or "
                "send fewer or smaller images and videos."
            )
        return ReadyPrompt(prepared, total, total - text)

    async def submit(self, prompt: ReadyPrompt, config: GenerationConfig) -> RunningAnswer:
        """Put a prompt into the engine's queue.

        Raises:
            GenerationError: the JSON schema cannot be followed, or the KV cache is too small.
            QueueFullError: too many prompts wait already.
        """
        room = self.max_context - prompt.prompt_tokens
        config = config.model_copy(update={"max_new_tokens": min(config.max_new_tokens, room)})
        handle = await self._in_thread(lambda: self.model.submit(prompt.prepared, config), self._abandon)
        answer = RunningAnswer(prompt, handle, self.model.time_token_stream(prompt.prepared), self._wake.set)
        with self._lock:
            self._answers.add(answer)
        self._wake.set()
        return answer

    async def _in_thread(self, work: Callable[[], Result], abandon: Callable[[Result], None] | None = None) -> Result:
        """Run `work` in a thread. If the caller is cancelled meanwhile, `abandon` gets the result."""
        future: Future[Result] = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel() and abandon is not None:
                future.add_done_callback(lambda done: None if done.exception() else abandon(done.result()))
            raise

    def _abandon(self, handle: Handle) -> None:
        """Let the engine's thread cancel a request, since that can take as long as a step."""
        self._unwanted.append(handle)
        self._wake.set()

    # -------------------------------------------------------------------------------------------- the engine's thread

    def _step_until_stopped(self) -> None:
        while not self._is_stopping:
            with self._lock:
                answers = list(self._answers)
            while self._unwanted:
                self._unwanted.popleft().cancel()
            if not answers:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._engine.step()
            except Exception:  # the engine ends the requests that it cannot answer, and this thread serves the next
                log.exception("A step of the engine failed.")
            self._deliver(answers)
        for answer in self._answers:
            answer.handle.cancel()

    def _deliver(self, answers: Sequence[RunningAnswer]) -> None:
        """Pass what a step has produced to the event loop, in one call.

        The first tokens of an answer and its end are passed on at once, the others after a while that depends on how
        many answers are running: several tokens then make one event.
        """
        news: list[tuple[RunningAnswer, list[Piece], bool]] = []
        now = time.perf_counter()
        due = now - SECONDS_PER_EVENT * len(answers)
        for answer in answers:
            if answer.is_cancelled:
                answer.handle.cancel()
            has_ended = answer.handle.has_ended  # before the pieces are taken: those of the last step come first
            if answer.last_delivery > due and not has_ended:
                continue
            pieces = answer.handle.take()
            if pieces or has_ended:
                news.append((answer, pieces, has_ended))
                answer.last_delivery = now
            if has_ended:
                with self._lock:
                    self._answers.discard(answer)
        if news:
            self._call_in_loop(lambda: _arrive(news))

    def _call_in_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None, "the thread is started in an event loop"
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed, so that nobody reads the answers
            self._is_stopping = True


def _arrive(news: Sequence[tuple[RunningAnswer, list[Piece], bool]]) -> None:
    for answer, pieces, has_ended in news:
        answer.arrive(pieces, has_ended)
