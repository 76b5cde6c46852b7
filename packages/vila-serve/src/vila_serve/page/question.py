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


ASK, DRAW = "ask", "draw"


@dataclass(frozen=True)
class Choices:
    """What the user has set. The page of a model that does not draw has no `mode` and no fields after it."""

    system_prompt: str | None
    max_tokens: float
    temperature: float
    top_p: float
    seed: str | None
    frames: float
    schema: str | None
    mode: str = ASK
    pictures: float = 1
    guidance: float = 3
    negative_prompt: str | None = None


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
    def prompt(self) -> str:
        """The text of the last turn, which a picture is drawn from."""
        return "\n".join(part["text"] for part in self.turns[-1]["content"] if part["type"] == "text")

    @property
    def affinity(self) -> str:
        """Questions with the same key go to the same replica, as do requests to the API with the same media or the same
        prompt of a picture."""
        if self.choices.mode == DRAW:
            return affinity_key({"prompt": self.prompt})
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
class PictureFile:
    """A picture of an answer: the bytes of a file, and the ending of its name."""

    data: bytes
    ending: str


@dataclass(frozen=True)
class Shown:
    """An update of the page; None leaves a component as it is.

    Attributes:
        answer: so far: texts and pictures.
        status: the line below the conversation.
        previews: pictures below that line while they are drawn, as `data:` URIs. They go with the next status.
        seen: what the model sees, HTML.
        error: why there is no answer.
    """

    answer: tuple[str | PictureFile, ...] | None = None
    status: str | None = None
    previews: tuple[str, ...] = ()
    seen: str | None = None
    error: str | None = None


class Answers(Protocol):
    """Answers the questions of the page."""

    def answer(self, question: Question) -> AsyncGenerator[Shown]:
        """Yield what the page shows while a question is answered, errors too. Closing it cancels the request."""
        ...


@dataclass(frozen=True)
class PageModel:
    """Facts about the model that the page needs.

    Attributes:
        name: what clients call it.
        context: most tokens of a prompt with its answer.
        num_video_frames: sampled from a video unless the user says otherwise.
        has_system_prompt: whether its chat template has room for one.
        max_pictures: how many it may draw at a time; 0 if it does not draw.
    """

    name: str
    context: int
    num_video_frames: int
    has_system_prompt: bool
    max_pictures: int = 0

    @classmethod
    def of(cls, service: "Service") -> "PageModel":
        """Return what the page says of the model of a server."""
        model = service.model
        return cls(
            name=service.model_name,
            context=model.config.language_model.max_length,
            num_video_frames=model.config.preprocess.num_video_frames,
            has_system_prompt=not isinstance(model.template, SeparatorTemplate),  # such a template has a fixed one
            max_pictures=service.settings.max_pictures if "image" in model.pictures else 0,
        )
