"""Prepare a prompt for the model: load and tile media, render the chat template, tokenize.

Dimensions: T tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from vila_core.chat import MEDIA_TOKENS, ChatTemplate, JinjaTemplate, Message, ToolCall, Turn
from vila_core.config import VilaConfig
from vila_core.conversation import Prompt, as_messages, parts_of, require_content
from vila_core.errors import PromptError, PromptTooLongError
from vila_core.media import Image, MediaLimits, Video, VideoFrames
from vila_core.prepared_videos import PreparedVideo, PreparedVideos
from vila_core.preprocess import preprocess_images, preprocess_video
from vila_core.tiles import THREADED_BYTES, Tiles, hash_threads
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    import PIL.Image

_CHARACTERS_PER_TOKEN = 64
"""More than any text has; English has 4."""
_SHORT_CONTEXT = 16_384
"""Tokens. A text that is too long for a shorter context is tokenized, so that the message can count its tokens."""


@dataclass(frozen=True)
class PreparedMedium:
    """One image or video of a prompt, ready for the network.

    Attributes:
        kind: which media token stands for it, and which encoder reads it: a key of `chat.MEDIA_TOKENS`.
        tiles: its pixels.
    """

    kind: str
    tiles: Tiles

    @cached_property
    def digest(self) -> bytes:
        """A digest of what the network reads: media with the same digest become the same tokens."""
        coming: Future[bytes] | None = self.__dict__.pop("_coming", None)
        return self.tiles.digest(self.kind) if coming is None else coming.result()

    def start_digest(self) -> None:
        """Compute the digest of a small medium in a thread, if there are threads."""
        if self.tiles.values.nbytes < THREADED_BYTES and (threads := hash_threads()) is not None:
            self.__dict__["_coming"] = threads.submit(self.tiles.digest, self.kind)


MediaWriter = Callable[[Message, Image | Video, Sequence[str]], str]
"""`(message, part, media tokens) -> text`: how an image or a video of a message stands in the prompt text."""


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt, ready for the network.

    Attributes:
        text: the prompt text, with media tokens in place of media.
        input_ids: its T token ids.
        media: the media in the order of their tokens. With `video_as_images`, each video frame is an image.
        video_duration: seconds of the last video, which time tokens refer to; None without a video or a frame rate.
        seconds: how long preparation took.
        turns: the conversation as text, with media tokens in place of media.
        media_counts: how many of `media` each image or video of the conversation became.
    """

    text: str
    input_ids: list[int]
    media: list[PreparedMedium] = field(default_factory=list[PreparedMedium])
    video_duration: float | None = None
    seconds: float = 0.0
    turns: Sequence[Turn] = ()
    media_counts: Sequence[int] = ()


def prepare(
    prompt: Prompt,
    config: VilaConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    limits: MediaLimits,
    *,
    generation_prompt: bool = True,
    videos: PreparedVideos | None = None,
    conversation: Sequence[Message] | None = None,
    on_media: Callable[[Sequence[PreparedMedium]], None] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    write: MediaWriter | None = None,
) -> PreparedPrompt:
    """Load and tile the media, render the template, and tokenize.

    Videos are taken from `videos` where it has them, and kept there. With `conversation`, whose parts are strings,
    `Image`s and `Video`s, `prompt` is not read: no text is looked up as a path. `on_media` is given the media before
    the text is rendered. `tools` are JSON values in OpenAI's form. `write` says how media stand in the text; None: as
    `config.text_after_media` says.

    Raises:
        PromptError: the prompt is empty or does not fit the template, or the template has no tools.
        MediaError: a medium cannot be read or exceeds `limits`.
    """
    started = time.perf_counter()
    messages = as_messages(prompt) if conversation is None else require_content(conversation)
    if generation_prompt:
        _require_alternating_roles(messages)
    parts = [part for message in messages for part in parts_of(message) if not isinstance(part, str)]
    if config.preprocess.video_as_images:
        videos = None
    loaded = [_load(part, config, limits, videos) for part in parts]
    media = _preprocess(loaded, config)
    if videos is not None:
        for part, one, (medium, *_) in zip(parts, loaded, media, strict=True):
            if isinstance(part, Video) and isinstance(one, VideoFrames):
                videos.keep(part, PreparedVideo(medium, one.duration))
    prepared = [medium for of_part in media for medium in of_part]
    if on_media is not None:
        on_media(prepared)
    turns = _as_turns(messages, media, write or _followed_by(config.text_after_media))
    if not any(turn.text for turn in turns):
        raise PromptError("The prompt is empty without the media tokens in its text. Pass pictures as Image(source).")
    text = _render(template, turns, tools, tokenizer, generation_prompt=generation_prompt)
    require_possible_length(text, config.language_model.max_length)
    input_ids = tokenizer.encode_split(text) if config.splits_text_at_media else tokenizer.encode(text)
    _require_media_tokens(input_ids, prepared, tokenizer)
    durations = [one.duration for one in loaded if isinstance(one, VideoFrames | PreparedVideo)]
    return PreparedPrompt(
        text,
        input_ids,
        prepared,
        durations[-1] if durations else None,
        time.perf_counter() - started,
        turns,
        [len(of_part) for of_part in media],
    )


def _render(
    template: ChatTemplate,
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    generation_prompt: bool,
) -> str:
    if not tools and not any(turn.tool_calls or turn.role == "tool" for turn in turns):
        return template.render(turns, tokenizer.special_tokens, generation_prompt=generation_prompt)
    if not isinstance(template, JinjaTemplate) or not template.takes_tools:
        raise PromptError(
            f"Chat template '{template.name}' does not support tools. Leave out the tools, their calls and results."
        )
    tools = cast("list[dict[str, Any]]", _clean([*tools]))
    return template.render(turns, tokenizer.special_tokens, generation_prompt=generation_prompt, tools=tools)


def _clean(value: object) -> object:
    """Return a JSON value whose texts have no media tokens."""
    if isinstance(value, str):
        return without_media_tokens(value)
    if isinstance(value, list):
        return [_clean(one) for one in cast("list[object]", value)]
    if isinstance(value, Mapping):
        return {_clean(key): _clean(one) for key, one in cast("Mapping[object, object]", value).items()}
    return value


def require_possible_length(text: str, context: int) -> None:
    """Raise `PromptError` for a text that cannot fit, before it is tokenized: 10 million characters take a minute."""
    limit = max(context, _SHORT_CONTEXT) * _CHARACTERS_PER_TOKEN
    if len(text) > limit:
        raise PromptTooLongError(
            f"The prompt has {len(text):,} characters, but the context is {context:,} tokens. Shorten the text."
        )


def _require_alternating_roles(messages: Sequence[Message]) -> None:
    """Raise `PromptError` unless the model can answer: models are trained on questions and answers in turn.

    The results of tools stand in place of a question.
    """
    start = 1 if messages[0].role == "system" else 0
    expected = "user"
    for index, message in enumerate(messages[start:], start):
        before = messages[index - 1] if index else None
        if message.role == "tool" and before is not None and (before.role == "tool" or before.tool_calls):
            expected = "assistant"
            continue
        if message.role == "tool":
            raise PromptError(
                f"Message {index + 1} is the result of a tool, but the message before it has no tool calls."
            )
        if message.role != expected:
            raise PromptError(
                f"Message {index + 1} is from the {message.role}, but user and assistant take turns, starting with the "
                "user; only the first message may be from the system. Join consecutive messages of the same role."
            )
        expected = "assistant" if expected == "user" else "user"
    last = messages[-1].role
    if last not in ("user", "tool"):
        raise PromptError(
            f"The conversation ends with a message from the {last}; it must end with one from the user, which the "
            "model answers."
        )


def _load(
    part: Image | Video, config: VilaConfig, limits: MediaLimits, videos: PreparedVideos | None
) -> "PIL.Image.Image | VideoFrames | PreparedVideo":
    if isinstance(part, Image):
        return part.load(limits)
    known = None if videos is None else videos.get(part)
    return known or part.load(config.preprocess.num_video_frames, config.preprocess.fps, limits)


def _preprocess(
    loaded: "Sequence[PIL.Image.Image | VideoFrames | PreparedVideo]", config: VilaConfig
) -> list[list[PreparedMedium]]:
    """Return the media of each loaded part: one, or one per frame for a video that is given as images."""
    as_images = config.preprocess.video_as_images
    pictures = [_pictures(one, as_images) for one in loaded]
    # Tiling depends on how many images the whole prompt has, so all of them are preprocessed together.
    images = iter(
        preprocess_images([picture for of_part in pictures for picture in of_part], config.pixels, config.preprocess)
    )

    def media_of(one: "PIL.Image.Image | VideoFrames | PreparedVideo", count: int) -> list[PreparedMedium]:
        if isinstance(one, PreparedVideo):
            return [one.medium]
        if isinstance(one, VideoFrames) and not as_images:
            return [PreparedMedium("video", preprocess_video(one.frames, config.pixels, config.preprocess))]
        return [PreparedMedium("image", next(images)) for _ in range(count)]

    return [media_of(one, len(of_part)) for one, of_part in zip(loaded, pictures, strict=True)]


def _pictures(one: "PIL.Image.Image | VideoFrames | PreparedVideo", as_images: bool) -> "Sequence[PIL.Image.Image]":
    """Return the pictures of a loaded part that the image encoder reads."""
    if isinstance(one, PreparedVideo):
        return []
    if isinstance(one, VideoFrames):
        return one.frames if as_images else []
    return [one]


def _followed_by(after: str) -> MediaWriter:
    """Return a writer that puts `after` behind each media token."""
    return lambda message, part, tokens: "".join(f"{token}{after}" for token in tokens)


def _as_turns(messages: Sequence[Message], media: Sequence[Sequence[PreparedMedium]], write: MediaWriter) -> list[Turn]:
    """Return the conversation as text, with media tokens in place of media. `media` has the media of each part."""
    remaining = iter(media)
    turns: list[Turn] = []
    for message in messages:
        pieces: list[str] = []
        for are_texts, parts in groupby(parts_of(message), key=lambda part: isinstance(part, str)):
            if are_texts:
                # Twice, because neighboring texts may form a media token together.
                pieces.append(without_media_tokens("".join(without_media_tokens(str(part)) for part in parts)))
            else:
                pieces += [
                    write(message, part, [_media_tokens(one) for one in next(remaining)])
                    for part in parts
                    if not isinstance(part, str)
                ]
        calls = [ToolCall(call.name, cast("Any", _clean(call.arguments))) for call in message.tool_calls]
        turns.append(Turn(message.role, "".join(pieces).strip(), calls))
    return turns


def _require_media_tokens(input_ids: Sequence[int], media: Sequence[PreparedMedium], tokenizer: Tokenizer) -> None:
    """Raise `PromptError` unless the media tokens are those of the media: a checkpoint may read other text as one."""
    for kind, token_id in tokenizer.media_token_ids.items():
        expected = sum(medium.tiles.num_placeholders for medium in media if medium.kind == kind)
        if (found := input_ids.count(token_id)) != expected:
            raise PromptError(
                f"This checkpoint's tokenizer reads {found} tokens {MEDIA_TOKENS[kind]} in the prompt instead of "
                f"{expected}: its chat template or tokenizer is damaged, or treats part of the text as such a token."
            )


def _media_tokens(medium: PreparedMedium) -> str:
    """Return the token of a medium. With dynamic tiling, each tile has a token and a newline."""
    token = MEDIA_TOKENS[medium.kind]
    if medium.tiles.layout.kind == "separate":
        return f"{token}\n" * medium.tiles.num_placeholders
    return token


def without_media_tokens(text: str) -> str:
    """Remove media tokens that a user typed, and those that appear when others are removed: `<ima<image>ge>`.

    As in the reference, a text that had one is also stripped. Other special tokens stay, also as in the reference.
    """
    tokens = tuple(MEDIA_TOKENS.values())
    if not any(token in text for token in tokens):
        return text
    kept: list[str] = []
    for character in text:
        kept.append(character)
        for token in tokens:
            if character == token[-1] and "".join(kept[-len(token) :]) == token:
                del kept[-len(token) :]
    return "".join(kept).strip()
