"""A finished answer, with token counts and timings."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token or stop string ended the answer; `length`: `max_new_tokens` or the context did."""


OutputPart = str
"""A part of an answer: a piece of text."""


@dataclass(frozen=True)
class Usage:
    """Token counts. `media_tokens` is the part of `prompt_tokens` that comes from images and videos."""

    prompt_tokens: int
    media_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds spent on loading and resizing media, encoding them, prefill, and decoding."""

    preprocess: float
    encode: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        parts: the output in order. Today every part is text.
        token_ids: the generated tokens, without a stop token. The tokens of a stop string are kept; its text is not.
        finish_reason: why the answer ended.
    """

    parts: tuple[OutputPart, ...]
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The text of the answer, without parts of other kinds."""
        return "".join(self.parts)
