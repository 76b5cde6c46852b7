"""One question and its answer, as a stream of what the page shows."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from vila_core.engine.limits import QueueFullError
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, VilaError, shown
from vila_serve.answer_settings import choose_seed, drawing_config
from vila_serve.answering import Ending, EngineStoppedError, Picture, RunningAnswer, merged, picture_tokens
from vila_serve.page.history import read_turns
from vila_serve.page.question import DRAW, Choices, PictureFile, Question, Shown
from vila_serve.page.seen import seen_html
from vila_serve.page.texts import LANGUAGES, Texts
from vila_serve.picture_files import as_data_uri, as_file
from vila_serve.request_id import choose_request_id, request_id

if TYPE_CHECKING:
    from vila_serve.api.service import Service

UPDATE_SECONDS = 0.05
"""The page shows new text so often."""
PREVIEWS = 7
"""How many previews of a picture are shown while it is drawn."""
log = logging.getLogger(__name__)


def generation_config(choices: Choices, limit: int | None) -> GenerationConfig:
    """Return the settings of an answer, whose length is limited too. Raises `GenerationError`."""
    values: dict[str, Any] = {
        "max_new_tokens": int(choices.max_tokens) if limit is None else min(int(choices.max_tokens), limit),
        "temperature": choices.temperature,
        "top_p": choices.top_p,
        "seed": choose_seed(_seed(choices.seed)),
        **({"json_schema": choices.schema} if choices.schema and choices.schema.strip() else {}),
    }
    return GenerationConfig.model_validate(values)


def _seed(given: str | None) -> int | None:
    text = "" if given is None else str(given).strip()
    if not text:
        return None
    if not re.fullmatch(r"-?[0-9]{1,40}", text):
        raise GenerationError(f"The seed is {shown(text)}; it must be a whole number, or empty.")
    return int(text)


class Turns:
    """Answers the questions of all pages with the server's engine.

    Args:
        service: of the server.
    """

    def __init__(self, service: "Service"):
        self._service = service

    async def answer(self, question: Question) -> AsyncGenerator[Shown]:
        """Yield what the page shows while a question is answered. Errors are yielded, too.

        When the iteration ends early, the request is cancelled.
        """
        service, texts = self._service, LANGUAGES[question.language]
        number = choose_request_id(None)
        request_id.set(number)  # of the task that Gradio makes for each event
        begin = time.perf_counter()
        try:
            if not service.admission.enter():
                yield Shown(error=texts.busy.format(seconds=service.admission.retry_after))
                return
            try:
                work = self._draw if question.choices.mode == DRAW else self._answer
                async with aclosing(work(question, texts, begin, number)) as news:
                    async for one in news:
                        yield one
            finally:
                service.admission.leave(0, time.perf_counter() - begin)
        except QueueFullError:
            yield Shown(error=texts.busy.format(seconds=service.admission.retry_after))
        except EngineStoppedError:
            yield Shown(error=texts.failed.format(number=number))
        except VilaError as error:
            yield Shown(error=str(error))
        except Exception:  # whatever it is, the page says that there is no answer
            log.exception("A question of the chat page failed.")
            yield Shown(error=texts.failed.format(number=number))

    async def _answer(self, question: Question, texts: Texts, begin: float, number: str) -> AsyncGenerator[Shown]:
        service, choices = self._service, question.choices
        yield Shown(status=texts.reading)
        config = generation_config(choices, service.settings.max_tokens)
        frames = max(1, int(choices.frames))
        messages = await read_turns(question.turns, choices.system_prompt or "", service.media, frames)
        (answer,) = await service.answering.answer(messages, [config])
        try:
            seen = await service.answering.look(answer.prompt, seen_html, texts)
            yield Shown(seen=seen, status=texts.reading)
            parts, text, shown_at = list[str | PictureFile](), "", 0.0
            async for delta in answer:
                text += delta.text
                if delta.picture is not None:
                    parts += [*([text] if text else []), await _as_file(delta.picture)]
                    text = ""
                if time.perf_counter() - shown_at >= UPDATE_SECONDS:
                    shown_at = time.perf_counter()
                    yield Shown((*parts, text), texts.writing)
            assert answer.ending is not None
            if text or not parts:
                parts.append(text)
            yield Shown(tuple(parts), _summary(answer, answer.ending, begin, texts))
        except GenerationError as error:
            log.error("An answer failed: %s", error)
            yield Shown(error=texts.failed.format(number=number))
        finally:
            service.end_answers([answer])

    async def _draw(self, question: Question, texts: Texts, begin: float, number: str) -> AsyncGenerator[Shown]:
        service, choices = self._service, question.choices
        if any(part["type"] != "text" for part in question.turns[-1]["content"]):
            yield Shown(error=texts.text_only)
            return
        asked = {"guidance": choices.guidance, "negative_prompt": choices.negative_prompt}
        config, count = drawing_config(asked, _seed(choices.seed)), int(choices.pictures)
        yield Shown(status=texts.drawing.format(percent=0))
        answers = await service.answering.draw(question.prompt, config, count, previews=PREVIEWS)
        try:
            newest = list[Picture | None]([None]) * count
            previews = [""] * count
            async for index, news in merged(answers):
                if isinstance(news, Ending) or news.picture is None:
                    continue
                newest[index], previews[index] = news.picture, await as_data_uri(news.picture)
                done = sum(picture.done for picture in newest if picture is not None) / count
                yield Shown(
                    status=texts.drawing.format(percent=int(100 * done)), previews=tuple(filter(None, previews))
                )
            files = [await _as_file(picture) for picture in newest if picture is not None]
            tokens = picture_tokens(answers)
            seconds = f"{time.perf_counter() - begin:.2f}"
            yield Shown(tuple(files), texts.drawn.format(seconds=seconds, tokens=f"{tokens:,}", seed=config.seed))
        except GenerationError as error:
            log.error("A picture failed: %s", error)
            yield Shown(error=texts.failed.format(number=number))
        finally:
            service.end_answers(answers)


async def _as_file(picture: Picture) -> PictureFile:
    name = "webp" if picture.kind == "video" else "png"
    return PictureFile(await asyncio.to_thread(as_file, picture, name), f".{name}")


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
