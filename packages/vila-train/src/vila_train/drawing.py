"""Samples of models that draw: pictures that are to be drawn, and how pictures stand in the text (VILA-U).

    in a question    an image    <im_start><image><im_end>, and a line break
                     a video     <image> and a line break for each frame
    in an answer     an image    <im_start><image><im_end>
                     a video     <vi_start><image>…<image><vi_end>

The language model learns the start and end tokens of what is drawn, and the head learns its codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vila_core.chat import Message
from vila_core.conversation import parts_of
from vila_core.errors import CheckpointError
from vila_core.generation.heads import MODELS_THAT_DRAW, OutputKind, TrainableHead
from vila_core.media import Image, MediaLimits, Video
from vila_core.model import VilaModel
from vila_core.tokenizer import Tokenizer
from vila_train.data.conversations import SampleError
from vila_train.data.turns import is_learned

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class DrawnPictures:
    """The pictures that a model can learn to draw.

    Attributes:
        kinds: of pictures; none for a model without a generation head.
    """

    kinds: Mapping[str, OutputKind]

    @classmethod
    def of(cls, network: VilaModel, tokenizer: Tokenizer) -> "DrawnPictures":
        """Return what the head of `network` can learn.

        Raises:
            CheckpointError: the tokenizer lacks a token that starts or ends a picture.
        """
        head = network.generation_head
        kinds = head.kinds if isinstance(head, TrainableHead) else {}
        for kind in kinds.values():
            for token in (kind.start_token, kind.end_token):
                if token is not None and not tokenizer.is_one_token(token):
                    raise CheckpointError(
                        f"The tokenizer has no token {token}, which stands beside pictures that are drawn. It belongs "
                        "to another checkpoint, or is damaged."
                    )
        return cls(kinds)

    def prepare(self, name: str, messages: Sequence[Message], limits: MediaLimits) -> Sequence[Message]:
        """Return a conversation whose pictures to be drawn are loaded and square.

        Start and end tokens in its texts are removed: `write` puts them where they belong.

        Raises:
            SampleError: an answer has a picture that the model cannot learn to draw.
            MediaError: a picture to be drawn cannot be read.
        """
        if not self.kinds and not any(pictures_in(message) for message in messages if is_learned(message)):
            return messages

        def prepared(message: Message, part: str | Image | Video) -> str | Image | Video:
            if isinstance(part, str):
                return self._without_tokens(part)
            return self._target(name, part, limits) if is_learned(message) else part

        return [
            replace(message, content=[prepared(message, part) for part in parts_of(message)]) for message in messages
        ]

    def write(self, message: Message, part: Image | Video, tokens: Sequence[str]) -> str:
        """Return how an image or a video of `message`, which stands for media tokens, is written."""
        kind = self.kinds.get(_kind_of(part)) if message.role == "assistant" else None
        if kind is None and isinstance(part, Video):
            return "".join(f"{token}\n" for token in tokens)
        stated = self.kinds["image"] if kind is None else kind
        text = f"{stated.start_token}{''.join(tokens)}{stated.end_token or ''}"
        return text if kind is not None else f"{text}\n"

    def _target(self, name: str, part: Image | Video, limits: MediaLimits) -> Image | Video:
        kind = self.kinds.get(_kind_of(part))
        if kind is None:
            what = "an image" if isinstance(part, Image) else "a video"
            can = f"{' and '.join(self.kinds)} only" if self.kinds else "no pictures: it has no generation head"
            raise SampleError(
                f"{name}: an answer has {what}, but this model draws {can}. {MODELS_THAT_DRAW} draw.",
                "picture in an answer",
                name,
            )
        if isinstance(part, Image):
            return Image(square(part.load(limits)))
        loaded = part.load(kind.frames, limits=limits)
        if len(loaded.frames) != kind.frames:
            raise SampleError(
                f"{name}: a video to be drawn has {len(loaded.frames)} frames, but this model draws {kind.frames}. "
                "Leave out 'frames', or name that many.",
                "number of frames",
                name,
            )
        return Video([square(frame) for frame in loaded.frames])

    def _without_tokens(self, text: str) -> str:
        """Return a text without start and end tokens, nor the line break that `write` puts behind a picture."""
        wrapped = False
        for kind in self.kinds.values():
            for token in (kind.start_token, kind.end_token):
                if token is not None and token in text:
                    wrapped, text = True, text.replace(token, "")
        return text.removeprefix("\n") if wrapped else text


def square(image: "PIL.Image.Image") -> "PIL.Image.Image":
    """Return the top square of a tall picture, or the middle one of a wide picture, as VILA-U was trained."""
    width, height = image.size
    if width <= height:
        return image.crop((0, 0, width, width))
    left = (width - height) // 2
    return image.crop((left, 0, left + height, height))


def pictures_in(message: Message) -> list[Image | Video]:
    """Return the images and videos of a message."""
    return [part for part in parts_of(message) if not isinstance(part, str)]


def _kind_of(part: Image | Video) -> str:
    return "image" if isinstance(part, Image) else "video"
