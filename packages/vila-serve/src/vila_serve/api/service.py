"""What the routes share: the model, its engine, and the door for media."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vila_core import Message, Vila
from vila_core.engine.sampling import GenerationConfig
from vila_serve import __version__
from vila_serve.answering import Answering, RunningAnswer
from vila_serve.api.admission import Admission
from vila_serve.api.conversation import Media
from vila_serve.api.errors import ApiError
from vila_serve.api.token_texts import TokenTexts
from vila_serve.observability.metrics import Metrics
from vila_serve.settings import ServeSettings

FINGERPRINT = f"vila-serve-{__version__}"


@dataclass(frozen=True)
class Service:
    """What answers requests.

    Attributes:
        model: answers.
        settings: of the server.
        answering: the engine's asyncio side.
        media: opens images and videos.
        admission: counts the requests in progress.
        metrics: counts what happened.
        token_texts: describes tokens.
        created: when the server started, in seconds since 1970.
    """

    model: Vila
    settings: ServeSettings
    answering: Answering
    media: Media
    admission: Admission
    metrics: Metrics
    token_texts: TokenTexts
    created: int

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

    def check_length(self, num_messages: int) -> None:
        """Raise `ApiError` for more messages than the context has tokens: rendering them would take long."""
        context = self.answering.max_context
        if num_messages > context:
            raise ApiError(
                400,
                f"The request has {num_messages:,} messages, but the context holds {context:,} tokens. Send the latest "
                "messages only.",
                param="messages",
                code="context_length_exceeded",
            )

    async def answer(
        self,
        messages: Sequence[Message],
        configs: Sequence[GenerationConfig],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[RunningAnswer]:
        """Start one answer to a conversation for each of `configs`. Raises as `Answering` does."""
        prompt = await self.answering.prepare(messages, tools)
        answers: list[RunningAnswer] = []
        try:
            for config in configs:
                answers.append(await self.answering.submit(prompt, config))  # noqa: PERF401 - kept if one fails
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return answers
