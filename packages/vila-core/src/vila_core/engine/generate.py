"""Generation: prefill the prompt, then decode token by token; stream one answer, or answer a batch.

B batch, T tokens of a prompt, D width, V vocabulary
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vila_core.engine.completion import FinishReason
from vila_core.engine.sampling import GenerationConfig, Sampler
from vila_core.engine.text import Detokenizer, StopStrings
from vila_core.errors import GenerationError, PromptError
from vila_core.language import LanguageModel
from vila_core.language.cache import Cache
from vila_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vila_core.engine.grammar import GrammarProcessor


@dataclass(frozen=True)
class Piece:
    """A step of a streamed answer. `token_id` is None for the last step of an answer that a stop token ended.

    `text` is what is certain so far. It is often empty, since half a character or a possible stop string is held back.
    """

    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Generated:
    """One finished answer. The times are those of the whole batch."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


def prefill(
    llm: LanguageModel, embeds: torch.Tensor, cache: Cache, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Read prompts `[B, T, D]`, padded on the right, into the empty `cache`; return the next token's logits `[B, V]`.

    `lengths` `[B]` are the numbers of tokens of the prompts; None means that each has T.
    """
    hidden = llm(embeds, cache=cache, lengths=lengths)
    last = hidden[:, -1] if lengths is None else hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    return llm.logits(last)


def decode_one_token(llm: LanguageModel, ids: torch.Tensor, positions: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Read one token of each row, `ids` `[B]`, at `positions` `[B, 1]` or `[1, 1]`; return the next logits `[B, V]`."""
    return llm.logits(llm.decode_step(llm.embed(ids[:, None]), positions, cache)[:, -1])


def stream(
    llm: LanguageModel,
    embeds: torch.Tensor,
    config: GenerationConfig,
    tokenizer: Tokenizer,
    stop_token_ids: frozenset[int],
) -> Iterator[Piece]:
    """Answer the prompt `[T, D]`, yielding one piece per token; the last piece has a finish reason.

    Raises:
        PromptError: the prompt is empty or leaves no room in the context.
        GenerationError: the JSON schema cannot be followed, or the model computes values that are not finite.
    """
    answers, steps = _start(llm, [embeds], config, tokenizer, stop_token_ids)
    return _pieces(answers[0], steps)


def generate(
    llm: LanguageModel,
    embeds: Sequence[torch.Tensor],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    stop_token_ids: frozenset[int],
) -> list[Generated]:
    """Answer a batch of prompts `[T_i, D]` of any lengths. Each answer is the same as for the prompt alone.

    Raises:
        PromptError: a prompt is empty or leaves no room in the context.
        GenerationError: the JSON schema cannot be followed, or the model computes values that are not finite.
    """
    if not embeds:
        return []
    begin = time.perf_counter()
    answers, steps = _start(llm, embeds, config, tokenizer, stop_token_ids)
    first_token = begin
    for step, ids in enumerate(steps):
        if step == 0:
            first_token = time.perf_counter()
        for answer, token_id in zip(answers, ids, strict=True):
            if answer.finish_reason is None:
                answer.push(token_id)
        if all(answer.finish_reason is not None for answer in answers):
            break
    return [answer.generated(first_token - begin, time.perf_counter() - first_token) for answer in answers]


class _Answer:
    """The answer of one row while it is being generated: its tokens, its text and whether it has ended."""

    def __init__(
        self, config: GenerationConfig, tokenizer: Tokenizer, stop_token_ids: frozenset[int], max_new_tokens: int
    ):
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._text: list[str] = []
        self._stop_token_ids = stop_token_ids
        self._max_new_tokens = max_new_tokens
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(config.stop)

    def push(self, token_id: int) -> Piece:
        """Add the next token. The answer must not have ended."""
        if token_id in self._stop_token_ids:
            return self._piece(None, self._rest(), "stop")
        self.token_ids.append(token_id)
        text = self._stop_strings.push(self._detokenizer.push(token_id))
        if not self._stop_strings.found and len(self.token_ids) == self._max_new_tokens:
            return self._piece(token_id, text + self._rest(), "stop" if self._stop_strings.found else "length")
        return self._piece(token_id, text, "stop" if self._stop_strings.found else None)

    def generated(self, prefill_seconds: float, decode_seconds: float) -> Generated:
        """Return the finished answer."""
        assert self.finish_reason is not None, "the answer has not ended yet"
        return Generated(self.token_ids, "".join(self._text), self.finish_reason, prefill_seconds, decode_seconds)

    def _rest(self) -> str:
        text = self._stop_strings.push(self._detokenizer.finish())
        return text if self._stop_strings.found else text + self._stop_strings.finish()

    def _piece(self, token_id: int | None, text: str, finish_reason: FinishReason | None) -> Piece:
        self._text.append(text)
        self.finish_reason = finish_reason
        return Piece(token_id, text, finish_reason)


def _pieces(answer: _Answer, steps: Iterator[list[int]]) -> Iterator[Piece]:
    for (token_id,) in steps:
        piece = answer.push(token_id)
        yield piece
        if piece.finish_reason is not None:
            return


def _start(
    llm: LanguageModel,
    embeds: Sequence[torch.Tensor],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    stop_token_ids: frozenset[int],
) -> tuple[list[_Answer], Iterator[list[int]]]:
    """Check the prompts; return the empty answers and the steps that fill them."""
    stops = stop_token_ids | frozenset(config.stop_token_ids)
    room = [_room(len(prompt), llm.config.max_length) for prompt in embeds]
    answers = [_Answer(config, tokenizer, stops, min(config.max_new_tokens, tokens)) for tokens in room]
    guide: GrammarProcessor | None = None
    if config.json_mode or config.json_schema is not None:
        from vila_core.engine import grammar  # imported here because xgrammar is slow to import

        guide = grammar.GrammarProcessor.for_answers(config, tokenizer, llm.config.vocab_size, stops, len(embeds))
    sampler = Sampler(config, len(embeds), embeds[0].device)
    return answers, _steps(llm, embeds, sampler, guide, min(config.max_new_tokens, max(room)))


@torch.inference_mode()
def _steps(
    llm: LanguageModel,
    prompts: Sequence[torch.Tensor],
    sampler: Sampler,
    guide: "GrammarProcessor | None",
    max_new_tokens: int,
) -> Iterator[list[int]]:
    """Yield the next token of every row, whether its answer has ended or not."""
    embeds, lengths = pad_right(prompts)
    rows, longest, _ = embeds.shape
    cache = llm.new_cache(rows, longest + max_new_tokens)
    history: list[list[int]] = [[] for _ in prompts]
    logits = prefill(llm, embeds, cache, lengths)
    positions = torch.full((1, 1), longest, device=embeds.device) if lengths is None else lengths[:, None]
    _require_finite(logits)
    for end in range(longest + 1, longest + max_new_tokens + 1):
        logits = logits.float()
        if guide is not None:
            logits = guide(logits, history)
        ids = sampler(logits)
        on_host: list[int] = ids.tolist()  # the only wait for the device in a step
        for row, token_id in zip(history, on_host, strict=True):
            row.append(token_id)
        yield on_host
        logits = decode_one_token(llm, ids, positions, cache.up_to(end))
        positions = positions + 1


def _require_finite(logits: torch.Tensor) -> None:
    """Raise `GenerationError` instead of answering with an arbitrary token."""
    if not bool(torch.isfinite(logits).all()):
        name = str(logits.dtype).removeprefix("torch.")
        raise GenerationError(
            f"The model computes values that are not finite in {name}. Its weights are damaged, or too large for this "
            "dtype: try another one (--dtype float32), or download the checkpoint again."
        )


def pad_right(prompts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Stack prompts `[T_i, D]` to `[B, T, D]` and return their lengths `[B]`; None if all are equal."""
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == max(lengths):
        return torch.stack(list(prompts)), None
    return torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True), torch.tensor(
        lengths, device=prompts[0].device
    )


def _room(prompt_length: int, max_length: int) -> int:
    """Return how many tokens may follow a prompt (at least one)."""
    if prompt_length == 0:
        raise PromptError("The prompt is empty: expected at least one token.")
    if prompt_length >= max_length:
        raise PromptError(
            f"The prompt has {prompt_length} tokens, media included, but the context holds {max_length}. This leaves "
            "no room for an answer. Use fewer tiles, fewer video frames or less text."
        )
    return max_length - prompt_length
