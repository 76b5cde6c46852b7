"""Messages between the API's side and the engine's side. Everything can be pickled.

Each request of the API's side has a number, by which its reply, its prompt and its cancelling are known; each answer
has one of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vila_core.chat import ChatTemplate, Message
from vila_core.config import VilaConfig
from vila_core.engine.completion import FinishReason, Timings, TokenLogprobs, Usage
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import VilaError

if TYPE_CHECKING:
    import PIL.Image


class EngineStoppedError(VilaError):
    """The engine has ended, so that its requests are not answered."""


@dataclass(frozen=True)
class PictureFacts:
    """A kind of picture that a model draws.

    Attributes:
        size: width and height in pixels.
        positions: what a picture has in place of tokens.
        start_token: the id of the token that begins it.
    """

    size: tuple[int, int]
    positions: int
    start_token: int


@dataclass(frozen=True)
class ModelFacts:
    """What the API's side knows of the model.

    Attributes:
        name: the hub id or folder name of the checkpoint.
        config: of the model.
        template: the chat template.
        tokens: the vocabulary: the tokenizer's spelling of each id.
        max_context: most tokens of a prompt with its answer.
        pictures: what it draws, "image" and "video"; empty for a model that writes only.
    """

    name: str
    config: VilaConfig
    template: ChatTemplate
    tokens: tuple[str | None, ...]
    max_context: int
    pictures: Mapping[str, PictureFacts] = field(default_factory=dict[str, PictureFacts])


@dataclass(frozen=True)
class ReadyPrompt:
    """A prompt that is being answered, with its token counts.

    Attributes:
        number: of the request.
        prompt_tokens: all tokens, and of these `media_tokens` of images and videos.
        seconds: how long loading and resizing the media, rendering and tokenizing took.
        video_duration: seconds of its last video.
    """

    number: int
    prompt_tokens: int
    media_tokens: int
    seconds: float
    video_duration: float | None


@dataclass(frozen=True)
class Ending:
    """How an answer ended.

    Attributes:
        usage: token counts, without pictures.
        queue_seconds: how long its prompt waited before it was read.
        picture_tokens: positions of the pictures that were drawn.
    """

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    queue_seconds: float
    picture_tokens: int = 0


@dataclass(frozen=True)
class Picture:
    """A picture in an answer.

    Attributes:
        kind: "image" or "video".
        frames: one of an image. Between processes their pixels are in shared memory.
        done: the part that has been drawn, 0 to 1; the rest of a preview is filled in.
    """

    kind: str
    frames: "tuple[PIL.Image.Image, ...]"
    done: float = 1.0

    @property
    def is_preview(self) -> bool:
        """Whether another one will take its place."""
        return self.done < 1


News = tuple[int, Sequence[str | Picture], Sequence[TokenLogprobs], Ending | Exception | None]
"""What an answer has gained: its number, text and pictures, log-probabilities if they were asked for, and how it
ended."""


@dataclass(frozen=True)
class Ask:
    """Prepare a prompt and give it an answer for each of `configs`, numbered `answers`. The reply is a `ReadyPrompt`.

    `tools` are in OpenAI's form; `request_id` is for the log; `previews` are of each image that is drawn in an answer.
    """

    number: int
    request_id: str | None
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    configs: Sequence[GenerationConfig]
    answers: Sequence[int]
    previews: int = 0


@dataclass(frozen=True)
class Draw:
    """Draw pictures of a prompt, one for each of `answers`. The reply is a `ReadyPrompt`.

    Attributes:
        kind: "image" or "video".
        config: how; with a seed.
        previews: of each picture, while it is drawn.
    """

    number: int
    request_id: str | None
    kind: str
    prompt: str
    config: DrawingConfig
    answers: Sequence[int]
    previews: int


@dataclass(frozen=True)
class Abandon:
    """Nobody waits for the reply to this `Ask` or `Draw` any more."""

    number: int


@dataclass(frozen=True)
class Cancel:
    """End these answers before their next tokens."""

    answers: Sequence[int]


@dataclass(frozen=True)
class Release:
    """Forget the prompt of this `Ask` or `Draw`."""

    number: int


@dataclass(frozen=True)
class Look:
    """Reply with what `view` makes of the model, the prompt of the request `prompt`, and `arguments`."""

    number: int
    prompt: int
    view: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Report:
    """Reply with the engine's `EngineStats`."""

    number: int


ToEngine = Ask | Draw | Abandon | Cancel | Release | Look | Report


@dataclass(frozen=True)
class Reply:
    """The result of a request, or its error."""

    number: int
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Step:
    """What a step of the engine has produced, for all answers."""

    news: Sequence[News]


FromEngine = Reply | Step
