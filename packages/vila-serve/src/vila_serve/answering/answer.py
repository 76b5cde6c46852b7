"""An answer that grows, as the API's side reads it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from vila_core.engine.completion import TokenLogprobs
from vila_core.engine.time_tokens import TimeTokenStream
from vila_serve.answering.messages import Ending, Picture, ReadyPrompt


@dataclass(frozen=True)
class Delta:
    """What an answer has gained.

    Attributes:
        text: more text.
        logprobs: of its tokens, if they were asked for.
        picture: a picture after the text, or a preview of it.
    """

    text: str
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    picture: Picture | None = None


class RunningAnswer:
    """An answer that grows. Iterate over it once; when the iteration ends early, the request is cancelled.

    Attributes:
        prompt: what is answered.
        is_first: whether it is the first answer to its prompt, of several.
        submitted, first_arrival: when it was submitted, and when the first token came, in seconds of
            `time.perf_counter`.
        ending: how the answer ended; None until then.
    """

    def __init__(
        self,
        prompt: ReadyPrompt,
        times: Callable[[], TimeTokenStream],
        cancel: Callable[[], None],
        *,
        is_first: bool = True,
    ):
        self.prompt = prompt
        self.is_first = is_first
        self.submitted = time.perf_counter()
        self.first_arrival: float | None = None
        self.ending: Ending | None = None
        self.is_cancelled = False
        self._cancel = cancel
        self._times = times
        self._text = _AnswerText(times())
        self._arrived: list[str | Picture] = []
        self._logprobs: list[TokenLogprobs] = []
        self._outcome: Ending | Exception | None = None
        self._news = asyncio.Event()

    def arrive(
        self,
        parts: Sequence[str | Picture],
        logprobs: Sequence[TokenLogprobs],
        outcome: Ending | Exception | None,
    ) -> None:
        """Take in what the engine has produced. Called in the event loop's thread."""
        if self._outcome is not None:
            return
        if self.first_arrival is None and not isinstance(outcome, Exception):
            self.first_arrival = time.perf_counter()
        self._arrived += parts
        self._logprobs += logprobs
        self._outcome = outcome
        self._news.set()

    def cancel(self) -> None:
        """End the request before its next token. One that has ended stays as it is."""
        if self._outcome is None and not self.is_cancelled:
            self.is_cancelled = True
            self._cancel()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """Yield the answer piece by piece; the pieces join to the parts that `Vila.complete` returns.

        Raises:
            GenerationError: the answer failed.
            EngineStoppedError: the engine has ended.
        """
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                outcome, text = self._outcome, ""
                arrived, self._arrived = self._arrived, []
                logprobs, self._logprobs = self._logprobs, []
                if isinstance(outcome, Exception):
                    raise outcome
                for part in arrived:
                    if isinstance(part, str):
                        text += self._text.push(part)
                        continue
                    if not part.is_preview:
                        text += self._text.finish()
                        self._text = _AnswerText(self._times())
                    yield Delta(text, logprobs, part)
                    text, logprobs = "", []
                if outcome is not None:
                    self.ending = outcome
                    text += self._text.finish()
                if text or logprobs:
                    yield Delta(text, logprobs)
                if outcome is not None:
                    return
        finally:
            self.cancel()


def picture_tokens(answers: Sequence[RunningAnswer]) -> int:
    """Return how many positions the pictures of answers that have ended have."""
    return sum(answer.ending.picture_tokens for answer in answers if answer.ending is not None)


async def merged(answers: Sequence[RunningAnswer]) -> AsyncIterator[tuple[int, Delta | Ending]]:
    """Yield what several answers gain, with their numbers, as it comes. Raises the error of an answer that fails."""
    if len(answers) == 1:  # without a task and a queue, which cost as much as the rest of an event
        async for delta in answers[0]:
            yield 0, delta
        assert answers[0].ending is not None
        yield 0, answers[0].ending
        return
    arrived: asyncio.Queue[tuple[int, Delta | Ending | Exception]] = asyncio.Queue()

    async def read(index: int, answer: RunningAnswer) -> None:
        try:
            async for delta in answer:
                arrived.put_nowait((index, delta))
            assert answer.ending is not None
            arrived.put_nowait((index, answer.ending))
        except Exception as error:  # noqa: BLE001 - raised below
            arrived.put_nowait((index, error))

    tasks = [asyncio.create_task(read(index, answer)) for index, answer in enumerate(answers)]
    try:
        num_running = len(tasks)
        while num_running:
            index, news = await arrived.get()
            if isinstance(news, Exception):
                raise news
            num_running -= isinstance(news, Ending)
            yield index, news
    finally:
        for task in tasks:
            task.cancel()


class _AnswerText:
    """Streams a text of an answer as `Vila.complete` returns it: with seconds for time tokens, and without spaces
    around it."""

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
