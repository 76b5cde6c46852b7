"""The answer of a request while it grows: its tokens, its text, and why it ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from vila_core.engine.completion import FinishReason, TokenLogprobs
from vila_core.engine.drawing import Drawn
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.text import Detokenizer, StopStrings
from vila_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A step of a streamed answer.

    Attributes:
        token_id: None for the last step of an answer that a stop token ended, and while a picture is drawn.
        text: what is certain so far. It is often empty, since half a character or a possible stop string is held back.
        finish_reason: set in the last piece.
        logprobs: see `Completion`.
        codes: of the next position of a picture.
        drawn: a picture that is complete with this piece.
    """

    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    codes: tuple[int, ...] | None = None
    drawn: Drawn | None = None


@dataclass(frozen=True)
class Generated:
    """One finished answer.

    Attributes:
        token_ids, text, finish_reason, logprobs: see `Completion`.
        cached_tokens: tokens of the prompt that were found in the cache.
        drafted_tokens, accepted_tokens: see `Usage`.
        encode_seconds, prefill_seconds, decode_seconds: the time in which media were encoded, the rest of the time to
            the first token, and from there to the end. Requests that run together share the machine, so their times
            overlap.
        queue_seconds: how long the request waited before that.
        parts: text and pictures in order; a single text if nothing was drawn.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    cached_tokens: int = 0
    encode_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    parts: Sequence[str | Drawn] = ()


Entry = int | tuple[int, ...]
"""A token, or the codes of a position of a picture."""


class Answer:
    """Collects the tokens of an answer and cuts its text at stop strings.

    Args:
        config: stop strings.
        tokenizer: turns tokens into text.
        stop_token_ids: tokens that end the answer and are not part of it.
        max_new_tokens: the longest answer.
    """

    def __init__(
        self, config: GenerationConfig, tokenizer: Tokenizer, stop_token_ids: frozenset[int], max_new_tokens: int
    ):
        self.token_ids: list[int] = []
        self.max_new_tokens = max_new_tokens
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._earlier: list[str | Drawn] = []  # parts before the text that grows now
        self._entries: list[Entry] | None = None  # from the first picture on; until then, token_ids has all
        self._stop_token_ids = stop_token_ids
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(config.stop)

    @property
    def text(self) -> str:
        """The text that is certain so far, without pictures."""
        if self._earlier:
            return "".join(part for part in self.parts if isinstance(part, str))
        return "".join(self._text)

    @property
    def parts(self) -> Sequence[str | Drawn]:
        """Text and finished pictures, in order."""
        last = "".join(self._text)
        return (*self._earlier, last) if last or not self._earlier else tuple(self._earlier)

    @property
    def length(self) -> int:
        """Tokens and positions of pictures so far."""
        return len(self.token_ids) if self._entries is None else len(self._entries)

    def runs(self, start: int, end: int) -> Iterator[list[Entry]]:
        """Yield entries `start` … `end` - 1, tokens and codes in lists of their own."""
        entries: Sequence[Entry] = self.token_ids if self._entries is None else self._entries
        for _, run in groupby(entries[start : max(end, start)], key=lambda entry: isinstance(entry, int)):
            yield list(run)

    def push_codes(self, codes: tuple[int, ...]) -> None:
        """Add the codes of the next position of a picture."""
        if self._entries is None:
            self._entries = list(self.token_ids)
        self._entries.append(codes)

    def push_drawn(self, drawn: Drawn) -> tuple[str, Drawn]:
        """End a picture; return it with the text before it that was held back. The text after it begins anew."""
        held = self._stop_strings.push(self._detokenizer.finish()) + self._stop_strings.finish()
        text = "".join(self._text) + held
        self._earlier += [part for part in (text, drawn) if part]
        self._text = []
        return held, drawn

    def end(self, finish_reason: FinishReason) -> Piece:
        """End the answer as it is; return its last piece."""
        return self._piece(None, self._rest(), finish_reason)

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Piece:
        """Add the next token. The answer must not have ended."""
        if token_id in self._stop_token_ids:
            return self._piece(None, self._rest(), "stop")
        self.token_ids.append(token_id)
        if self._entries is not None:
            self._entries.append(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        text = self._stop_strings.push(self._detokenizer.push(token_id))
        if not self._stop_strings.found and len(self.token_ids) == self.max_new_tokens:
            text += self._rest()
            return self._piece(token_id, text, "stop" if self._stop_strings.found else "length", logprobs)
        return self._piece(token_id, text, "stop" if self._stop_strings.found else None, logprobs)

    def _rest(self) -> str:
        text = self._stop_strings.push(self._detokenizer.finish())
        return text if self._stop_strings.found else text + self._stop_strings.finish()

    def _piece(
        self, token_id: int | None, text: str, finish_reason: FinishReason | None, logprobs: TokenLogprobs | None = None
    ) -> Piece:
        self._text.append(text)
        self.finish_reason = finish_reason
        return Piece(token_id, text, finish_reason, logprobs)
