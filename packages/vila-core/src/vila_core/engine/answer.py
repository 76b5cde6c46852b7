"""The answer of a request while it grows: its tokens, its text, and why it ended."""

from dataclasses import dataclass, field

from vila_core.engine.completion import FinishReason, TokenLogprobs
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.text import Detokenizer, StopStrings
from vila_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A step of a streamed answer. `token_id` is None for the last step of an answer that a stop token ended.

    `text` is what is certain so far. It is often empty, since half a character or a possible stop string is held back.
    """

    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


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
        self._stop_token_ids = stop_token_ids
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(config.stop)

    @property
    def text(self) -> str:
        """The text that is certain so far."""
        return "".join(self._text)

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Piece:
        """Add the next token. The answer must not have ended."""
        if token_id in self._stop_token_ids:
            return self._piece(None, self._rest(), "stop")
        self.token_ids.append(token_id)
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
