"""The engine's side: prepares prompts in threads, steps the engine in one thread, and passes on what each step gave."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from vila_core import Vila
from vila_core.engine.request import Handle
from vila_core.errors import PromptTooLongError
from vila_core.prompt import PreparedPrompt
from vila_serve.answering.engine_answer import EngineAnswer
from vila_serve.answering.facts import facts_of, positions_of
from vila_serve.answering.messages import (
    Abandon,
    Ask,
    Cancel,
    Draw,
    FromEngine,
    Look,
    ModelFacts,
    ReadyPrompt,
    Release,
    Reply,
    Report,
    Step,
    ToEngine,
)
from vila_serve.answering.parts import AnswerParts
from vila_serve.request_id import request_id

MAX_THREADS = 8
SECONDS_PER_EVENT = 0.0003
"""Each running answer makes the others' tokens wait that much longer: so many events per second leave the event loop
and the clients time for other things. A single answer gets each token at once."""
log = logging.getLogger(__name__)


class EngineSide:
    """Answers the messages of the API's side.

    Args:
        model: answers.
        max_context: most tokens of a prompt with its answer; None for the model's context.
        send: passes a message on. Called in any thread.
        threads: how many prompts are prepared at a time.
    """

    def __init__(
        self,
        model: Vila,
        max_context: int | None,
        send: Callable[[FromEngine], None],
        *,
        threads: int | None = None,
    ):
        context = model.config.language_model.max_length
        self.model = model
        self.max_context = context if max_context is None else min(max_context, context)
        self._engine = model.engine
        self._send = send
        threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(threads, "prepare")
        # Schemas may take minutes to compile, so that they have threads of their own.
        self._schema_threads = ThreadPoolExecutor(threads, "schemas")
        self._lock = threading.Lock()  # guards the next three
        self._preparing: dict[int, Future[None]] = {}
        self._prompts: dict[int, tuple[PreparedPrompt | None, list[EngineAnswer]]] = {}
        self._answers: dict[int, EngineAnswer] = {}
        self._unwanted: deque[Handle] = deque()
        self._wake = threading.Event()
        self._is_stopping = False

    @property
    def facts(self) -> ModelFacts:
        """What the API's side knows of the model."""
        return facts_of(self.model, self.max_context)

    def handle(self, message: ToEngine) -> None:
        """Act on a message, without waiting."""
        match message:
            case Ask():
                has_schema = any(config.json_schema is not None for config in message.configs)
                threads = self._schema_threads if has_schema else self._threads
                with self._lock:
                    self._preparing[message.number] = threads.submit(self._ask, message, partial(self._start, message))
            case Draw():
                with self._lock:
                    start = partial(self._start_drawing, message)
                    self._preparing[message.number] = self._threads.submit(self._ask, message, start)
            case Look():
                self._threads.submit(self._reply, message.number, lambda: self._look(message))
            case Report():
                self._reply(message.number, self._engine.stats)
            case Cancel():
                for number in message.answers:
                    if answer := self._answers.get(number):
                        answer.is_unwanted = True
            case Abandon():
                self._abandon(message.number)
            case Release():
                self._prompts.pop(message.number, None)
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return."""
        self._is_stopping = True
        self._wake.set()
        for threads in (self._threads, self._schema_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, ask: Ask | Draw, start: Callable[[], None]) -> None:
        """Prepare a prompt and put its answers into the engine's queue."""
        token = request_id.set(ask.request_id)
        try:
            start()
        except Exception as error:  # noqa: BLE001 - the API's side tells what the client may know
            with self._lock:
                self._preparing.pop(ask.number, None)
            self._send(Reply(ask.number, error=error))
        finally:
            request_id.reset(token)

    def _start(self, ask: Ask) -> None:
        prepared, prompt = self._prepare(ask)
        room = self.max_context - prompt.prompt_tokens

        def submit(index: int) -> Handle:
            config = ask.configs[index]
            limited = config.model_copy(update={"max_new_tokens": min(config.max_new_tokens, room)})
            return self.model.submit(prepared, limited)

        self._submit(ask, prompt, prepared, submit, lambda: AnswerParts(self.model, previews=ask.previews))

    def _start_drawing(self, draw: Draw) -> None:
        model = self.model
        begin = time.perf_counter()
        text = model.prepare_picture(draw.kind, draw.prompt, draw.config)
        positions = positions_of(model, draw.kind)
        if len(text) + positions > self.max_context:
            raise PromptTooLongError(
                f"The prompt has {len(text):,} tokens and the {draw.kind} {positions:,}, but this server takes at most "
                f"{self.max_context:,} together. Shorten the prompt."
            )
        prompt = ReadyPrompt(draw.number, len(text), 0, time.perf_counter() - begin, None)
        self._submit(
            draw,
            prompt,
            None,
            lambda index: model.submit_picture(text, draw.config, index),
            lambda: AnswerParts(model, previews=draw.previews, kind=draw.kind),
        )

    def _submit(
        self,
        ask: Ask | Draw,
        prompt: ReadyPrompt,
        prepared: PreparedPrompt | None,
        submit: Callable[[int], Handle],
        parts: Callable[[], AnswerParts],
    ) -> None:
        """Put the answers to a prompt into the engine's queue: all, or none if one of them finds no place."""
        answers: list[EngineAnswer] = []
        try:
            for index, number in enumerate(ask.answers):
                answers.append(EngineAnswer(number, prompt, submit(index), parts()))
        except BaseException:
            self._drop(answers)
            raise
        with self._lock:
            if self._preparing.pop(ask.number, None) is None:  # abandoned meanwhile
                self._drop(answers)
                return
            self._prompts[ask.number] = prepared, answers
            self._answers.update({answer.number: answer for answer in answers})
        self._send(Reply(ask.number, prompt))
        for answer in answers:
            answer.is_announced = True
        self._wake.set()

    def _prepare(self, ask: Ask) -> tuple[PreparedPrompt, ReadyPrompt]:
        prepared = self.model.prepare_untrusted(ask.messages, ask.tools)
        counts = self.model.count_tokens(prepared)
        total, text = sum(counts.values()), counts["text"]
        if total >= self.max_context:
            raise PromptTooLongError(
                f"The prompt has {total:,} tokens ({text:,} of text, {total - text:,} of media), but "
                f"this server takes at most {self.max_context:,} for prompt and answer together. Shorten the text, or "
                "send fewer or smaller images and videos."
            )
        return prepared, ReadyPrompt(ask.number, total, total - text, prepared.seconds, prepared.video_duration)

    def _abandon(self, number: int) -> None:
        with self._lock:
            if (future := self._preparing.pop(number, None)) is not None:
                future.cancel()
            _, answers = self._prompts.pop(number, (None, []))
            for answer in answers:
                answer.is_unwanted = True

    def _drop(self, answers: Sequence[EngineAnswer]) -> None:
        """Let the engine's thread cancel answers, since that can take as long as a step."""
        self._unwanted.extend(answer.handle for answer in answers)
        self._wake.set()

    def _look(self, message: Look) -> Any:
        prepared, _ = self._prompts[message.prompt]
        assert prepared is not None, "prompts of pictures are not looked at"
        return message.view(self.model, prepared, *message.arguments)

    def _reply(self, number: int, work: Callable[[], Any]) -> None:
        try:
            reply = Reply(number, work())
        except Exception as error:  # noqa: BLE001 - as in `_ask`
            reply = Reply(number, error=error)
        self._send(reply)

    def run(self) -> None:
        """Step the engine until `stop` is called, then cancel what is left."""
        while not self._is_stopping:
            while self._unwanted:
                self._unwanted.popleft().cancel()
            if not self._answers:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._engine.step()
            except Exception:  # the engine ends the requests that it cannot answer, and the next ones are served
                log.exception("A step of the engine failed.")
            self._deliver()
        for answer in self._answers.values():
            answer.handle.cancel()

    def _deliver(self) -> None:
        """Pass on what a step has produced, in one message.

        The beginning of an answer and its end are passed on at once, the others after a while that depends on how many
        answers are running: several tokens then make one event. Those that have waited longest come first, beginnings
        before all others: the message makes events in its order.
        """
        with self._lock:
            answers = [answer for answer in self._answers.values() if answer.is_announced]
        answers.sort(key=lambda answer: answer.last_delivery)
        now = time.perf_counter()
        due = now - SECONDS_PER_EVENT * len(answers)
        news = [one for answer in answers if (one := answer.take_news(now, due)) is not None]
        if ended := [number for number, _, _, outcome in news if outcome is not None]:
            with self._lock:
                for number in ended:
                    del self._answers[number]
        if news:
            self._send(Step(news))
