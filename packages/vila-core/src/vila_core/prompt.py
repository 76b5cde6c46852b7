"""A prompt or a conversation to what the model reads: media loaded and tiled, text rendered and tokenized.

Dimensions: T tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from vila_core.chat import IMAGE_TOKEN, MEDIA_TOKENS, VIDEO_TOKEN, ChatTemplate, Message, Turn
from vila_core.config import VilaConfig
from vila_core.errors import PromptError
from vila_core.media import Image, MediaLimits, Video
from vila_core.preprocess import Tiles, preprocess_images, preprocess_video
from vila_core.tokenizer import Tokenizer

Part = str | Image | Video
Prompt = str | Sequence[Part] | Sequence[Message]
"""A text, a list of strings and media in order, or a conversation of `Message`s."""


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt, ready for the network.

    Attributes:
        text: the prompt text, media as their tokens.
        input_ids: its T token ids.
        images: one entry per image, in order (video frames too under `video_as_images`).
        videos: one entry per video, in order.
        durations: seconds of each video, in order; None where that is not known (frames without a frame rate).
        seconds: how long preparation took.
    """

    text: str
    input_ids: list[int]
    images: list[Tiles] = field(default_factory=list[Tiles])
    videos: list[Tiles] = field(default_factory=list[Tiles])
    durations: list[float | None] = field(default_factory=list[float | None])
    seconds: float = 0.0


def as_messages(prompt: Prompt) -> list[Message]:
    """Return `prompt` as a conversation.

    Raises:
        PromptError: it is empty, mixes messages with parts, or holds something else.
    """
    parts: list[object] = [prompt] if isinstance(prompt, str | Image | Video | Message) else list(prompt)
    messages = [part for part in parts if isinstance(part, Message)]
    if messages and len(messages) < len(parts):
        raise PromptError("A prompt is either a list of strings and media or a list of Messages, not both.")
    if not messages:
        content = [part for part in parts if isinstance(part, str | Image | Video)]
        if len(content) < len(parts):
            strange = type(next(part for part in parts if not isinstance(part, str | Image | Video)))
            name = f"{strange.__module__}.{strange.__qualname__}".removeprefix(
                "builtins."
            )  # other libraries have an Image too
            raise PromptError(f"A prompt holds strings, Image and Video, not {name}. Wrap pictures: Image(source).")
        messages = [Message("user", content)]
    if not any(isinstance(part, Image | Video) or part.strip() for message in messages for part in _parts(message)):
        raise PromptError("The prompt is empty. Give at least a text, an image or a video.")
    return messages


def prepare(
    prompt: Prompt,
    config: VilaConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    limits: MediaLimits,
    *,
    generation_prompt: bool = True,
) -> PreparedPrompt:
    """Load and tile the media, render the template, and tokenize.

    Raises:
        PromptError: the prompt is empty or does not fit the template.
        MediaError: a medium cannot be read or exceeds `limits`.
    """
    started = time.perf_counter()
    messages = as_messages(prompt)
    pictures, videos, durations = [], [], []
    frame_counts: list[int] = []
    for part in (part for message in messages for part in _parts(message)):
        if isinstance(part, Image):
            pictures.append(part.load(limits))
        elif isinstance(part, Video):
            loaded = part.load(config.preprocess.num_video_frames, config.preprocess.fps, limits)
            durations.append(loaded.duration)
            if config.preprocess.video_as_images:
                pictures.extend(loaded.frames)
                frame_counts.append(len(loaded.frames))
            else:
                videos.append(preprocess_video(loaded.frames, config.pixels, config.preprocess))
    images = preprocess_images(pictures, config.pixels, config.preprocess)
    turns = _as_turns(messages, images, frame_counts)
    text = template.render(turns, tokenizer.special_tokens, generation_prompt=generation_prompt)
    return PreparedPrompt(text, tokenizer.encode(text), images, videos, durations, time.perf_counter() - started)


def _as_turns(messages: Sequence[Message], images: Sequence[Tiles], frame_counts: Sequence[int]) -> list[Turn]:
    """Replace media by their tokens. `frame_counts` has, in order, the frames of each video that is given as images."""
    remaining, counts = iter(images), iter(frame_counts)
    turns: list[Turn] = []
    for message in messages:
        text = ""
        for part in _parts(message):
            if isinstance(part, str):
                text += _without_media_tokens(part)
            elif isinstance(part, Image):
                text += _image_tokens(next(remaining))
            elif frame_counts:
                text += "".join(_image_tokens(next(remaining)) for _ in range(next(counts)))
            else:
                text += VIDEO_TOKEN
        turns.append(Turn(message.role, text.strip()))
    return turns


def _image_tokens(image: Tiles) -> str:
    """A plain image is one token; dynamic tiles are a token and a newline each."""
    return f"{IMAGE_TOKEN}\n" * len(image.pixels) if image.is_separate else IMAGE_TOKEN


def _without_media_tokens(text: str) -> str:
    """Remove media tokens that a user typed; a text that had one is stripped, as in the reference."""
    for token in MEDIA_TOKENS.values():
        if token in text:
            text = text.replace(token, "").strip()
    return text


def _parts(message: Message) -> list[Part]:
    content = message.content
    return [content] if isinstance(content, str | Image | Video) else list(content)
