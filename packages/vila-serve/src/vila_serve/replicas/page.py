"""The chat page in front of several replicas: it runs in the process of the front, and a replica answers."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi import FastAPI
from starlette.types import ASGIApp

from vila_core.errors import VilaError
from vila_serve.api.errors import install_handlers
from vila_serve.page.question import Answers, PageModel, Question, Shown
from vila_serve.page.texts import LANGUAGES
from vila_serve.replicas.front import RETRY_SECONDS, ReplicaDiedError, ReplicasFullError
from vila_serve.request_id import choose_request_id
from vila_serve.settings import ServeSettings

log = logging.getLogger(__name__)


class ReplicaAnswers:
    """Sends the questions of the page to replicas.

    A question whose replica dies is given to another one, also when text has been shown: the page shows the new answer
    in its place.

    Args:
        ask: yields what the page shows. Raises `ReplicaDiedError` and `ReplicasFullError`.
        max_bytes: most bytes of the files of a conversation, as `data:` URIs.
        attempts: how many replicas may die under one question.
    """

    def __init__(self, ask: Callable[[Question], AsyncGenerator[Shown]], *, max_bytes: int, attempts: int = 3):
        self._ask = ask
        self._max_bytes = max_bytes
        self._attempts = attempts

    async def answer(self, question: Question) -> AsyncGenerator[Shown]:
        """Yield what the page shows while a question is answered, errors too."""
        texts = LANGUAGES[question.language]
        size = sum(len(part.get("url", "")) for turn in question.turns for part in turn["content"])
        if size > self._max_bytes:
            yield Shown(error=str(_too_large(size, self._max_bytes)))
            return
        for attempt in range(self._attempts):
            try:
                async with aclosing(self._ask(question)) as news:
                    async for shown in news:
                        yield shown
                return
            except ReplicasFullError:
                yield Shown(error=texts.busy.format(seconds=RETRY_SECONDS))
                return
            except ReplicaDiedError:
                log.warning("A replica died while it answered a question of the chat page.")
            await asyncio.sleep(0.1 * attempt)
        number = choose_request_id(None)
        log.error("No replica answered a question of the chat page.", extra={"data": {"id": number}})
        yield Shown(error=texts.failed.format(number=number))


def _too_large(size: int, limit: int) -> VilaError:
    return VilaError(
        f"The files of this conversation have {size:,} bytes as text; this server takes at most {limit:,}. Begin a new "
        "chat, or use smaller files."
    )


def with_page(front: ASGIApp, answers: Answers, model: PageModel, settings: ServeSettings) -> ASGIApp:
    """Return an application that serves the chat page at `/` and gives all other requests to `front`.

    Raises:
        MissingDependencyError: the extra `page` is not installed.
    """
    from vila_serve.page.page import add_page  # imported here because of gradio, which takes seconds

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.router.default = front
    install_handlers(app)
    add_page(app, answers, model, settings)
    return app
