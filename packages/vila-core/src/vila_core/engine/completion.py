"""What a finished answer says of itself."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token or stop string ended the answer; `length`: `max_new_tokens` or the context did."""


@dataclass(frozen=True)
class Usage:
    """Tokens counted. `media_tokens` are the part of `prompt_tokens` that images and videos became."""

    prompt_tokens: int
    media_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds by part: reading and resizing media, encoding them, reading the prompt, writing the answer."""

    preprocess: float
    encode: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Completion:
    """An answer: `token_ids` holds no stop token; a stop string is cut from `text`, its tokens stay in `token_ids`."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
