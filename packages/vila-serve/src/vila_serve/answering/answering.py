"""The API's side: asks the engine, wherever it runs, and reads answers that grow."""

import asyncio
import itertools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vila_core.chat import Message
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.limits import EngineStats
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.time_tokens import TimeTokenStream
from vila_serve.answering.answer import RunningAnswer
from vila_serve.answering.messages import (
    Abandon,
    Ask,
    Cancel,
    Draw,
    EngineStoppedError,
    FromEngine,
    Look,
    ModelFacts,
    ReadyPrompt,
    Release,
    Reply,
    Report,
    ToEngine,
)
from vila_serve.request_id import request_id

if TYPE_CHECKING:
    from vila_core import Vila

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Link(Protocol):
    """The way to the engine's side."""

    def start(self, receive: Callable[[FromEngine], None], ended: Callable[[str], None]) -> None:
        """Begin to pass messages on, in the running event loop. `ended` is called with the reason if the engine's side
        ends by itself."""
        ...

    async def send(self, message: ToEngine) -> None:
        """Send a message that may hold images and videos."""
        ...

    def send_now(self, message: ToEngine) -> None:
        """Send a small message."""
        ...

    async def stop(self) -> None:
        """End the engine's side, and what it is answering."""
        ...


class Answering:
    """Answers the requests of an asyncio program with one model.

    Attributes:
        model: what is known of the model.
        stopped: why the engine has ended by itself; None while it works.
    """

    def __init__(self, model: ModelFacts, link: Link):
        self.model = model
        self.stopped: str | None = None
        self.is_alive = False
        self.link = link
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[Ask | Draw, asyncio.Future[list[RunningAnswer]]]] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._answers: dict[int, RunningAnswer] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchers: list[Callable[[str], None]] = []

    @classmethod
    def local(cls, model: "Vila", *, max_context: int | None = None) -> "Answering":
        """Return one whose engine runs in threads of this process."""
        from vila_serve.answering.local import LocalLink  # imported here because of torch

        link = LocalLink(model, max_context)
        return cls(link.facts, link)

    def start(self) -> None:
        """Start answering. Call it in the event loop that will read the answers."""
        self._loop = asyncio.get_running_loop()
        self.is_alive = True
        self.link.start(self._receive, self._end)

    async def stop(self) -> None:
        """Cancel what is left and end the engine."""
        self.is_alive = False
        await self.link.stop()
        self._fail_all(EngineStoppedError("The server is stopping."))

    def when_stopped(self, watcher: Callable[[str], None]) -> None:
        """Call `watcher` with the reason, in the event loop, if the engine ends by itself."""
        self._watchers.append(watcher)

    def _end(self, reason: str) -> None:
        """Take note that the engine has ended by itself."""
        if not self.is_alive:
            return
        self.is_alive, self.stopped = False, reason
        log.critical("%s", reason)
        self._fail_all(EngineStoppedError(reason))
        for watcher in self._watchers:
            watcher(reason)

    def _fail_all(self, error: Exception) -> None:
        waiting = [*(future for _, future in self._asked.values()), *self._replies.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        for answer in self._answers.values():
            answer.arrive((), (), error)
        self._asked.clear()
        self._replies.clear()
        self._answers.clear()

    async def answer(
        self,
        messages: Sequence[Message],
        configs: Sequence[GenerationConfig],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        previews: int = 0,
    ) -> list[RunningAnswer]:
        """Prepare a prompt and start one answer to it for each of `configs`.

        Args:
            messages: the conversation.
            configs: how to answer.
            tools: in OpenAI's form.
            previews: of each image that is drawn in an answer.

        Raises:
            PromptTooLongError: the prompt leaves no room for an answer.
            PromptError, MediaError: as `Vila.prepare` does.
            GenerationError: the JSON schema cannot be followed, or the KV cache is too small.
            QueueFullError: too many prompts wait already.
            EngineStoppedError: the engine has ended.
        """
        number, answers = next(self._numbers), [next(self._numbers) for _ in configs]
        return await self._begin(Ask(number, request_id.get(), messages, tools, configs, answers, previews))

    async def draw(
        self, prompt: str, config: DrawingConfig, n: int, *, kind: str = "image", previews: int = 0
    ) -> list[RunningAnswer]:
        """Start to draw n pictures of a prompt. Each is an answer whose last delta has the picture.

        Args:
            prompt: what to draw.
            config: how; with a seed.
            n: how many.
            kind: "image" or "video".
            previews: of each picture, while it is drawn.

        Raises:
            ConfigError: the model does not draw that.
            PromptTooLongError: the prompt leaves no room for a picture.
            PromptError: the prompt is empty.
            GenerationError: the KV cache or `max_batch` is too small for a picture.
            QueueFullError, EngineStoppedError: as `answer` does.
        """
        number, answers = next(self._numbers), [next(self._numbers) for _ in range(n)]
        return await self._begin(Draw(number, request_id.get(), kind, prompt, config, answers, previews))

    async def _begin(self, ask: Ask | Draw) -> list[RunningAnswer]:
        loop, number = self._check_alive(), ask.number
        future: asyncio.Future[list[RunningAnswer]] = loop.create_future()
        self._asked[number] = ask, future
        try:
            await self.link.send(ask)
            return await future
        except asyncio.CancelledError:
            if self._asked.pop(number, None) is not None:
                self._tell(Abandon(number))
            elif future.done() and not future.cancelled() and future.exception() is None:
                for answer in future.result():
                    answer.cancel()
            raise

    async def look(self, prompt: ReadyPrompt, view: Callable[..., Result], *arguments: Any) -> Result:
        """Return `view(model, prepared, *arguments)`, computed where the model and the prepared prompt are.

        `view` is a function of a module, and its arguments and result can be pickled.
        """
        return await self._reply_to(lambda number: Look(number, prompt.number, view, arguments))

    async def stats(self) -> EngineStats:
        """Return what the engine is doing. Raises `EngineStoppedError`."""
        return await self._reply_to(Report)

    async def _reply_to(self, message: Callable[[int], ToEngine]) -> Any:
        loop, number = self._check_alive(), next(self._numbers)
        future = self._replies[number] = loop.create_future()
        try:
            self.link.send_now(message(number))
            return await future
        finally:
            self._replies.pop(number, None)

    def _check_alive(self) -> asyncio.AbstractEventLoop:
        if not self.is_alive or self._loop is None:
            raise EngineStoppedError(self.stopped or "The server is stopping.")
        return self._loop

    def _tell(self, message: ToEngine) -> None:
        if self.is_alive:
            self.link.send_now(message)

    def _receive(self, message: FromEngine) -> None:
        """Take a message of the engine's side. Called in the event loop's thread."""
        if isinstance(message, Reply):
            self._take_reply(message)
            return
        for number, parts, logprobs, outcome in message.news:
            answer = self._answers.get(number)
            if answer is None:
                continue
            answer.arrive(parts, logprobs, outcome)
            if outcome is not None:
                del self._answers[number]

    def _take_reply(self, reply: Reply) -> None:
        if reply.number in self._replies:
            _settle(self._replies[reply.number], reply.result, reply.error)
        elif reply.number in self._asked:
            ask, future = self._asked.pop(reply.number)
            _settle(future, None if reply.error else self._started(ask, reply.result), reply.error)

    def _started(self, ask: Ask | Draw, prompt: ReadyPrompt) -> list[RunningAnswer]:
        """Return the answers that the engine has begun. What comes next may be their first tokens."""

        def times() -> TimeTokenStream:
            return TimeTokenStream.of_video(self.model.config.time_tokens, prompt.video_duration)

        for index, number in enumerate(ask.answers):
            self._answers[number] = RunningAnswer(
                prompt, times, lambda number=number: self._tell(Cancel([number])), is_first=index == 0
            )
        # The prompt's tiles are kept as long as anybody may look at them.
        weakref.finalize(prompt, self._release, ask.number).atexit = False
        return [self._answers[number] for number in ask.answers]

    def _release(self, number: int) -> None:
        """Let the engine's side forget a prompt. Called by the garbage collector, in any thread."""
        if self._loop is not None and self.is_alive and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell, Release(number))


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
