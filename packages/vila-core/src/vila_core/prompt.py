"""Prepare a prompt for the model: load and tile media, render the chat template, tokenize.

Dimensions: T tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vila_core.chat import MEDIA_TOKENS, ChatTemplate, Message, Turn
from vila_core.config import VilaConfig
from vila_core.conversation import Prompt, as_messages, parts_of
from vila_core.errors import warn
from vila_core.media import Image, MediaLimits, Video, VideoFrames
from vila_core.preprocess import Tiles, preprocess_images, preprocess_video
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class PreparedMedium:
    """One image or video of a prompt, ready for the network.

    Attributes:
        kind: which media token stands for it, and which encoder reads it: a key of `chat.MEDIA_TOKENS`.
        tiles: its pixels.
    """

    kind: str
    tiles: Tiles


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt, ready for the network.

    Attributes:
        text: the prompt text, with media tokens in place of media.
        input_ids: its T token ids.
        media: the media in the order of their tokens. With `video_as_images`, each video frame is an image.
        video_duration: seconds of the last video, which time tokens refer to; None without a video or a frame rate.
        seconds: how long preparation took.
    """

    text: str
    input_ids: list[int]
    media: list[PreparedMedium] = field(default_factory=list[PreparedMedium])
    video_duration: float | None = None
    seconds: float = 0.0


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
    if generation_prompt and messages[-1].role == "assistant":
        warn("The conversation ends with an answer of the assistant; the model starts another one after it.")
    loaded = [
        _load(part, config, limits) for message in messages for part in parts_of(message) if not isinstance(part, str)
    ]
    media = _preprocess(loaded, config)
    turns = _as_turns(messages, media)
    text = template.render(turns, tokenizer.special_tokens, generation_prompt=generation_prompt)
    durations = [one.duration for one in loaded if isinstance(one, VideoFrames)]
    return PreparedPrompt(
        text,
        tokenizer.encode(text),
        [medium for of_part in media for medium in of_part],
        durations[-1] if durations else None,
        time.perf_counter() - started,
    )


def _load(part: Image | Video, config: VilaConfig, limits: MediaLimits) -> "PIL.Image.Image | VideoFrames":
    if isinstance(part, Image):
        return part.load(limits)
    return part.load(config.preprocess.num_video_frames, config.preprocess.fps, limits)


def _preprocess(loaded: "Sequence[PIL.Image.Image | VideoFrames]", config: VilaConfig) -> list[list[PreparedMedium]]:
    """Return the media of each loaded part: one, or one per frame for a video that is given as images."""
    as_images = config.preprocess.video_as_images
    pictures = [
        [] if isinstance(one, VideoFrames) and not as_images else one.frames if isinstance(one, VideoFrames) else [one]
        for one in loaded
    ]
    # Tiling depends on how many images the whole prompt has, so all of them are preprocessed together.
    images = iter(
        preprocess_images([picture for of_part in pictures for picture in of_part], config.pixels, config.preprocess)
    )
    return [
        [PreparedMedium("video", preprocess_video(one.frames, config.pixels, config.preprocess))]
        if isinstance(one, VideoFrames) and not as_images
        else [PreparedMedium("image", next(images)) for _ in of_part]
        for one, of_part in zip(loaded, pictures, strict=True)
    ]


def _as_turns(messages: Sequence[Message], media: Sequence[Sequence[PreparedMedium]]) -> list[Turn]:
    """Return the conversation as text, with media tokens in place of media. `media` has the media of each part."""
    remaining = iter(media)
    turns: list[Turn] = []
    for message in messages:
        pieces = [
            _without_media_tokens(part) if isinstance(part, str) else "".join(map(_media_tokens, next(remaining)))
            for part in parts_of(message)
        ]
        turns.append(Turn(message.role, "".join(pieces).strip()))
    return turns


def _media_tokens(medium: PreparedMedium) -> str:
    """Return the token of a medium. With dynamic tiling, each tile has a token and a newline."""
    token = MEDIA_TOKENS[medium.kind]
    if medium.tiles.layout.kind == "separate":
        return f"{token}\n" * medium.tiles.num_placeholders
    return token


def _without_media_tokens(text: str) -> str:
    """Remove media tokens that a user typed. As in the reference, a text that had one is also stripped."""
    for token in MEDIA_TOKENS.values():
        if token in text:
            text = text.replace(token, "").strip()
    return text
