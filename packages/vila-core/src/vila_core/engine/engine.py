"""The engine: continuous batching of requests over one model.

Every step, requests join from the queue, prompts are read a chunk at a time, and each answer grows by one token.
Requests leave as they end. The steps of a request:

    QUEUED     waits for a row and for pages of the KV cache
    READING    its media and its prompt go through the model in chunks, between the steps of the others
    ANSWERING  it has a row, and gets one token a step
    ENDED      its full pages are kept for prompts that begin alike

The engine lets its callers' threads take turns. A scheduler (`scheduling.py`) decides who is read and who is answered;
a runner (`runner.py`) computes.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress

import torch

from vila_core.engine.admission import Admission
from vila_core.engine.answer import Generated
from vila_core.engine.collecting import Collector
from vila_core.engine.drawing import DrawingRequest, OutputModes
from vila_core.engine.failures import as_error
from vila_core.engine.inputs import EngineInput
from vila_core.engine.intake import Intake
from vila_core.engine.known_prompts import KnownPrompts
from vila_core.engine.limits import EngineConfig, EngineStats, QueueFullError
from vila_core.engine.pages import PagePool
from vila_core.engine.pictures import Pictures
from vila_core.engine.reading import LoadMedia, Reader
from vila_core.engine.request import Handle, Request, cancelled
from vila_core.engine.request_lists import RequestLists
from vila_core.engine.runner import Runner
from vila_core.engine.runner_choice import choose_runner, require_cache_dtype
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.scheduling import Scheduler
from vila_core.engine.step_lock import StepLock
from vila_core.engine.switching import ModeSwitch
from vila_core.errors import GenerationError
from vila_core.language import LanguageModel
from vila_core.language.divided import current
from vila_core.tokenizer import Tokenizer


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
        self._head = None if modes is None else modes.head
        pictures = None if modes is None else Pictures(modes, llm, tokenizer, self.config)
        self._intake = Intake(llm, tokenizer, stop_token_ids, self.config, pictures, self._use_runner)
        self._runner: Runner | None = None
        self._step_lock = StepLock()
        self._door = threading.Lock()  # held while a request is put into the inbox
        self._inbox: deque[Request] = deque()
        self._requests = RequestLists()
        self._known_prompts = KnownPrompts()
        self._admission = Admission(self._requests, self.config.max_batch, self._known_prompts)
        reader = Reader(llm, self.config, load, modes, self._requests.end)
        switch = None if pictures is None else ModeSwitch(pictures, self._requests, self._admission)
        collector = Collector(self._requests, self._known_prompts, switch)
        self._scheduler = Scheduler(self._requests, self._admission, reader, collector)
        self._count = 0

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
        request = self._intake.request(prompt, config, drawing)
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
        return len(self._requests.queue) + len(self._inbox)

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
            len(self._requests.reading),
            len(self._requests.answering),
            pool.num_pages,
            pool.num_used,
            pool.num_kept,
            self._admission.cached_tokens,
            self._scheduler.preemptions,
            self._scheduler.drafts.drafted,
            self._scheduler.drafts.accepted,
        )

    def clear_cache(self) -> None:
        """Forget what is kept for prompts that begin alike."""
        with self._step_lock.lock:
            if self._runner is not None:
                self._runner.pool.clear()
            self._known_prompts.clear()

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """Answer the requests of a `with` block without traces: `stats` does not count them, the cache is empty then.

        There should be no other requests meanwhile.
        """
        counts = self._admission.cached_tokens, self._scheduler.preemptions
        try:
            yield
        finally:
            self.clear_cache()
            self._admission.cached_tokens, self._scheduler.preemptions = counts

    def while_idle(self, call: Callable[[], None]) -> None:
        """Call `call`, which may use the model, if there is no request; else do nothing."""

        @torch.inference_mode()
        def run() -> None:
            if not (self._inbox or self._scheduler.is_busy):
                with current(self._use_runner().device):
                    call()

        self._step_lock.run_if_free(run)

    def _cancel(self, request: Request) -> None:
        """End a request; if another thread is in the middle of a step, that thread does it."""
        request.is_cancelled = True
        while not request.has_ended:
            if not self._step_lock.run_if_free(self._drop_cancelled):
                self._step_lock.wait(lambda: request.has_ended)

    def step(self) -> bool:
        """Let every request advance; return whether any is left."""
        return self._step_lock.run(self._step)

    def _step_for(self, request: Request) -> None:
        """Step until `request` has something new. If another thread steps, wait for that."""

        def has_news() -> bool:
            return bool(request.pieces) or request.has_ended

        def step() -> None:
            if not has_news():
                self._step()

        if not self._step_lock.run_if_free(step):
            self._step_lock.wait(has_news)

    def _receive(self) -> None:
        """Take in the requests that were submitted meanwhile."""
        while self._inbox:
            self._requests.queue.append(self._inbox.popleft())

    def _drop_cancelled(self) -> None:
        self._receive()
        for request in list(self._requests):
            if request.is_cancelled:
                self._requests.end(self._runner, request, cancelled())

    @torch.inference_mode()
    def _step(self) -> bool:
        runner = self._use_runner()
        try:
            with current(runner.device):
                self._receive()
                self._scheduler.step(runner)
                self._drop_cancelled()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the requests and not the engine
            self._abandon(as_error(error))
        except BaseException:  # Ctrl-C
            self._abandon(GenerationError("The answer was interrupted."))
            raise
        return self._scheduler.is_busy

    def _abandon(self, error: Exception) -> None:
        """End every request, since the state of the rows is unknown. The engine continues with an empty cache."""
        self._receive()
        self._scheduler.abandon(error)
        self._runner = None

    def _use_runner(self) -> Runner:
        runner = self._runner
        if runner is None:
            with self._step_lock.lock:
                runner = self._runner = self._runner or choose_runner(self._llm, self.config, self._head)
        return runner


def _outcome(handle: Handle) -> Generated | GenerationError:
    try:
        return handle.result()
    except GenerationError as error:
        return error
