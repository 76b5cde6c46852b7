"""What the routes share: the model, its engine, and the door for media."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from vila_serve import __version__
from vila_serve.answering import Answering, EngineStoppedError, ModelFacts, RunningAnswer
from vila_serve.api.admission import Admission
from vila_serve.api.errors import ApiError
from vila_serve.api.token_texts import TokenTexts
from vila_serve.media import MediaDoor
from vila_serve.observability.metrics import Metrics
from vila_serve.settings import ServeSettings

FINGERPRINT = f"vila-serve-{__version__}"
STATS_SECONDS = 2.0
"""How long /metrics waits for the engine."""


@dataclass(frozen=True)
class Service:
    """What answers requests.

    Attributes:
        settings: of the server.
        answering: asks the engine.
        media: opens images and videos.
        admission: counts the requests in progress.
        metrics: counts what happened.
        token_texts: describes tokens.
        created: when the server started, in seconds since 1970.
    """

    settings: ServeSettings
    answering: Answering
    media: MediaDoor
    admission: Admission
    metrics: Metrics
    token_texts: TokenTexts
    created: int

    @property
    def model(self) -> ModelFacts:
        """What is known of the model."""
        return self.answering.model

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.settings.model_name or self.model.name

    def check_model(self, name: str) -> None:
        """Raise `ApiError` unless `name` is the model's: its whole name, or that without the owner on the hub."""
        known = self.model_name
        if name not in (known, known.rpartition("/")[2]):
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist. This server serves '{known}'.",
                param="model",
                code="model_not_found",
            )

    def end_answers(self, answers: Iterable[RunningAnswer]) -> None:
        """Cancel answers unless they have ended, and count them."""
        for answer in answers:
            answer.cancel()
            self.metrics.answer_ended(answer)

    async def metrics_text(self) -> bytes:
        """Return all numbers for Prometheus. An engine that does not answer in time leaves its numbers as they were."""
        stats = None
        with suppress(EngineStoppedError, TimeoutError):
            async with asyncio.timeout(STATS_SECONDS):
                stats = await self.answering.stats()
        return self.metrics.render(stats)

    def check_length(self, num_messages: int) -> None:
        """Raise `ApiError` for more messages than the context has tokens: rendering them would take long."""
        context = self.model.max_context
        if num_messages > context:
            raise ApiError(
                400,
                f"The request has {num_messages:,} messages, but the context holds {context:,} tokens. Send the latest "
                "messages only.",
                param="messages",
                code="context_length_exceeded",
            )
