"""Time tokens of video models (LITA, Huang et al. 2024): `<tN>` in an answer stands for a point in the video."""

import re
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from vila_core.config import TimeTokenConfig

_SECONDS = re.compile(r"<(\d*\.\d+|\d+\.?)>")
_BEYOND = re.compile(r"<t(\d+)>")


def decode_time_token(text: str, *, duration: float, num_time_tokens: int, time_token_format: str) -> str:
    """Replace the time tokens of `text` by `<seconds>`, rounded to hundredths.

    Token t of n means `t * duration / (n - 1)` seconds; if there is only one token, it means the start. A number beyond
    the last token, in the common form `<tN>`, means the end.
    """
    steps = max(num_time_tokens - 1, 1)
    seconds = {time_token_format.format(t=t): f"<{round(t * duration / steps, 2)}>" for t in range(num_time_tokens)}
    # Longest first: in a format without a closing character, one token can be a prefix of another.
    tokens = "|".join(re.escape(token) for token in sorted(seconds, key=len, reverse=True))
    text = re.sub(tokens, lambda match: seconds[match[0]], text)

    def clamp(match: re.Match[str]) -> str:
        digits = match[1]
        is_beyond = int(digits) >= num_time_tokens and digits == str(int(digits))  # "<t0100>" is not a token
        return f"<{round(duration, 2)}>" if is_beyond else match[0]

    return _BEYOND.sub(clamp, text)


def encode_time_token(text: str, *, duration: float, num_time_tokens: int, time_token_format: str) -> str:
    """Replace `<seconds>` in `text` by the nearest time token, and strip the text.

    Times beyond `duration` become tokens beyond the last one. In a video without a duration every time means the start.
    """

    def nearest(match: re.Match[str]) -> str:
        fraction = float(match[1]) / duration if duration > 0 else 0.0
        return time_token_format.format(t=round(fraction * (num_time_tokens - 1)))

    return _SECONDS.sub(nearest, text).strip()


class TimeTokenStream:
    """`decode_time_token` for text that arrives in pieces. Text that may be the beginning of a token is held back.

    With `num_time_tokens` 0 the pieces pass through unchanged.
    """

    def __init__(self, *, duration: float, num_time_tokens: int, time_token_format: str):
        self._duration = duration
        self._count = num_time_tokens
        self._format = time_token_format
        self._held = ""

    @classmethod
    def of_video(cls, tokens: "TimeTokenConfig | None", seconds: float | None) -> Self:
        """Return the stream of a model and a video of so many seconds; None: it has no time tokens, or no video."""
        if tokens is None or seconds is None:
            return cls(duration=0.0, num_time_tokens=0, time_token_format="")
        return cls(duration=seconds, num_time_tokens=tokens.count, time_token_format=tokens.format)

    def push(self, piece: str) -> str:
        """Add a piece of text; return the part that is certain."""
        if not self._count:
            return piece
        text = self._held + piece
        # The longest token: that many characters at the end may still become one.
        longest = len(self._format.format(t=10 * self._count))
        opening = self._format.partition("{")[0][:1] or "<"
        start = text.rfind(opening, max(len(text) - longest, 0))
        is_open = start >= 0 and (not self._format.endswith(">") or ">" not in text[start:])
        cut = start if is_open else len(text)
        self._held = text[cut:]
        return self._decode(text[:cut])

    def finish(self) -> str:
        """Return the remaining text once no more will come."""
        rest, self._held = self._held, ""
        return self._decode(rest) if self._count else rest

    def _decode(self, text: str) -> str:
        return decode_time_token(
            text, duration=self._duration, num_time_tokens=self._count, time_token_format=self._format
        )
