"""A question of the chat page as plain data: the page may run in another process than the model, or elsewhere."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vila_core.chat import SeparatorTemplate
from vila_serve.affinity import affinity_key

if TYPE_CHECKING:
    from vila_serve.api.service import Service

Turn = dict[str, Any]
"""A message: "role" and "content", a list of `{"type": "text", "text": …}` and `{"type": "image" or "video", "url": …}`
with a `data:` URI."""


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


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question.

    Attributes:
        turns: the conversation.
        choices: what the user has set.
        language: of the page, a key of `LANGUAGES`.
    """

    turns: list[Turn]
    choices: Choices
    language: str

    @property
    def affinity(self) -> str:
        """Questions with the same key go to the same replica, as do requests to the API with the same media."""
        kinds = {"image": "image_url", "video": "video_url"}
        messages = [
            {
                "role": turn["role"],
                "content": [
                    {"type": kinds[part["type"]], kinds[part["type"]]: part["url"]} if part["type"] in kinds else part
                    for part in turn["content"]
                ],
            }
            for turn in self.turns
        ]
        return affinity_key({"messages": messages})


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


class Answers(Protocol):
    """Answers the questions of the page."""

    def answer(self, question: Question) -> AsyncGenerator[Shown]:
        """Yield what the page shows while a question is answered, errors too. Closing it cancels the request."""
        ...


@dataclass(frozen=True)
class PageModel:
    """What the page says of the model.

    Attributes:
        name: what clients call it.
        context: most tokens of a prompt with its answer.
        num_video_frames: sampled from a video unless the user says otherwise.
        has_system_prompt: whether its chat template has room for one.
    """

    name: str
    context: int
    num_video_frames: int
    has_system_prompt: bool

    @classmethod
    def of(cls, service: "Service") -> "PageModel":
        """Return what the page says of the model of a server."""
        model = service.model
        return cls(
            name=service.model_name,
            context=model.config.language_model.max_length,
            num_video_frames=model.config.preprocess.num_video_frames,
            has_system_prompt=not isinstance(model.template, SeparatorTemplate),  # such a template has a fixed one
        )
