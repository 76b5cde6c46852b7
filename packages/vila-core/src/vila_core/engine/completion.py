"""A finished answer, with token counts and timings."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Union

from vila_core.display import html
from vila_core.media import Video

if TYPE_CHECKING:
    import PIL.Image

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token or stop string ended the answer; `length`: `max_new_tokens` or the context did."""


SHOWN = 200
"""Characters of the answer that `repr` shows."""

OutputPart = Union[str, "PIL.Image.Image", Video]
"""A part of an answer: a piece of text, or an image or a video that the model drew."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of a token and its alternatives, before temperature, penalties and other settings.

    Attributes:
        token_id: the chosen token.
        logprob: its log-probability (natural logarithm).
        top: the likeliest tokens and their log-probabilities, the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: tokens of the prompt, with its media.
        media_tokens: those of images and videos among them.
        completion_tokens: tokens of the answer.
        cached_tokens: tokens of the prompt that an earlier prompt began with, so that they were not computed again.
        drafted_tokens: tokens drafted by prompt lookup, and of these `accepted_tokens` that the model chose too: each
            saves a step.
    """

    prompt_tokens: int
    media_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds spent on loading and resizing media, encoding them, prefill, and decoding."""

    preprocess: float
    encode: float
    prefill: float
    decode: float


@dataclass(frozen=True, repr=False)
class Completion:
    """An answer. `print(completion)` prints its text.

    Attributes:
        parts: the output in order: text, and images and videos that the model drew.
        token_ids: the generated tokens, without a stop token. The tokens of a stop string are kept; its text is not.
        finish_reason: why the answer ended.
        logprobs: of each token of `token_ids`; None unless the setting `logprobs` asks for them.
    """

    parts: tuple[OutputPart, ...]
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: list[TokenLogprobs] | None = None

    @property
    def text(self) -> str:
        """The text of the answer, without parts of other kinds."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…"
        return f"Completion({text!r}, finish_reason={self.finish_reason!r}, {', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        ended = "" if self.finish_reason == "stop" else "The answer was cut: max_new_tokens or the context ended it."
        return html.card(
            "Completion",
            *(_shown(part) for part in self.parts),
            html.note("; ".join(self._facts())),
            *([html.note(ended)] if ended else []),
        )

    def _facts(self) -> tuple[str, ...]:
        usage, timings = self.usage, self.timings
        media = f" ({usage.media_tokens:,} of media)" if usage.media_tokens else ""
        seconds = timings.preprocess + timings.encode + timings.prefill + timings.decode
        return (
            f"{usage.prompt_tokens:,} prompt tokens{media}",
            f"{usage.completion_tokens:,} answer token{'s'[: usage.completion_tokens != 1]}",
            f"{seconds:.2f} s",
        )


def _shown(part: OutputPart) -> str:
    if isinstance(part, str):
        return html.block(part)
    return part._repr_html_() if isinstance(part, Video) else html.picture(part)  # pyright: ignore[reportPrivateUsage]
