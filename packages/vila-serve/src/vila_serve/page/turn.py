"""One question and its answer, as a stream of what the page shows."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vila_core.engine.limits import QueueFullError
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, VilaError, shown
from vila_serve.answering import Ending, RunningAnswer
from vila_serve.page.history import PageMessage, read_history
from vila_serve.page.seen import seen_html
from vila_serve.page.texts import Texts
from vila_serve.request_id import choose_request_id, request_id

if TYPE_CHECKING:
    from vila_serve.api.service import Service

UPDATE_SECONDS = 0.05
"""The page shows new text so often."""
SEEDS = 2**63
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What the user has set."""

    system_prompt: str | None
    max_tokens: float
    temperature: float
    top_p: float
    seed: str | None
    frames: float
    schema: str | None

    def config(self, limit: int | None) -> GenerationConfig:
        """Return the settings of the answer, whose length is limited too. Raises `GenerationError`."""
        values: dict[str, Any] = {
            "max_new_tokens": int(self.max_tokens) if limit is None else min(int(self.max_tokens), limit),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self._seed(),
            **({"json_schema": self.schema} if self.schema and self.schema.strip() else {}),
        }
        return GenerationConfig.model_validate(values)

    def _seed(self) -> int:
        text = "" if self.seed is None else str(self.seed).strip()
        if not text:
            return secrets.randbelow(SEEDS)
        if not re.fullmatch(r"-?[0-9]{1,40}", text):
            raise GenerationError(f"The seed is {shown(text)}; it must be a whole number, or empty.")
        return int(text) % SEEDS


@dataclass(frozen=True)
class Shown:
    """What the page shows now; None leaves a part as it is.

    Attributes:
        text: of the answer so far.
        status: the line below the conversation.
        seen: what the model sees, HTML.
        error: why there is no answer.
    """

    text: str | None = None
    status: str | None = None
    seen: str | None = None
    error: str | None = None


class Turns:
    """Answers the questions of all pages with the server's engine.

    Args:
        service: of the server.
        folders: where files of conversations may lie.
    """

    def __init__(self, service: "Service", folders: Sequence[Path]):
        self._service = service
        self._folders = [folder.resolve() for folder in folders]

    async def answer(self, history: Sequence[PageMessage], choices: Choices, texts: Texts) -> AsyncIterator[Shown]:
        """Yield what the page shows while the last question of `history` is answered. Errors are yielded, too.

        When the iteration ends early, the request is cancelled.
        """
        service = self._service
        number = choose_request_id(None)
        request_id.set(number)  # of the task that Gradio makes for each event
        begin = time.perf_counter()
        try:
            if not service.admission.enter():
                yield Shown(error=texts.busy.format(seconds=service.admission.retry_after))
                return
            try:
                async for news in self._answer(history, choices, texts, begin, number):
                    yield news
            finally:
                service.admission.leave(0, time.perf_counter() - begin)
        except QueueFullError:
            yield Shown(error=texts.busy.format(seconds=service.admission.retry_after))
        except VilaError as error:
            yield Shown(error=str(error))
        except Exception:  # whatever it is, the page says that there is no answer
            log.exception("A question of the chat page failed.")
            yield Shown(error=texts.failed.format(number=number))

    async def _answer(
        self, history: Sequence[PageMessage], choices: Choices, texts: Texts, begin: float, number: str
    ) -> AsyncIterator[Shown]:
        service = self._service
        yield Shown(status=texts.reading)
        config = choices.config(service.settings.max_tokens)
        messages = await read_history(
            history, choices.system_prompt or "", service.media, self._folders, max(1, int(choices.frames))
        )
        prompt = await service.answering.prepare(messages)
        answer = await service.answering.submit(prompt, config)
        try:
            seen = await asyncio.to_thread(seen_html, service.model, prompt.prepared, texts)
            yield Shown(seen=seen, status=texts.reading)
            text, shown_at = "", 0.0
            async for delta in answer:
                text += delta.text
                if time.perf_counter() - shown_at >= UPDATE_SECONDS:
                    shown_at = time.perf_counter()
                    yield Shown(text=text, status=texts.writing)
            assert answer.ending is not None
            yield Shown(text=text, status=_summary(answer, answer.ending, begin, texts))
        except GenerationError as error:
            log.error("An answer failed: %s", error)
            yield Shown(error=texts.failed.format(number=number))
        finally:
            answer.cancel()
            service.metrics.answer_ended(answer)


def _summary(answer: RunningAnswer, ending: Ending, begin: float, texts: Texts) -> str:
    """Return token counts and timings in words."""
    usage = ending.usage
    counts = {
        "total": usage.prompt_tokens,
        "media": usage.media_tokens,
        "cached": usage.cached_tokens,
        "count": usage.completion_tokens,
    }
    facts = [texts.tokens_used.format(**{name: f"{count:,}" for name, count in counts.items()})]
    if answer.first_arrival is not None:
        facts.append(texts.first_token.format(seconds=f"{answer.first_arrival - begin:.2f}"))
    if usage.completion_tokens > 1 and ending.timings.decode > 0:
        facts.append(texts.speed.format(rate=f"{(usage.completion_tokens - 1) / ending.timings.decode:,.0f}"))
    if ending.finish_reason == "length":
        facts.append(texts.cut)
    return " · ".join(facts)
