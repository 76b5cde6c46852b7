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
        GenerationError: the JSON schema cannot be followed, or, after any number of pieces, the model computes values
            that are not finite.
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
    """Answer a batch of prompts as `generate_each` does. Raises `GenerationError` if any of them fails."""
    outcomes = generate_each(llm, embeds, config, tokenizer, stop_token_ids)
    for outcome in outcomes:
        if isinstance(outcome, GenerationError):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Generated)]


def generate_each(
    llm: LanguageModel,
    embeds: Sequence[torch.Tensor],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    stop_token_ids: frozenset[int],
) -> list[Generated | GenerationError]:
    """Answer a batch of prompts `[T_i, D]` of any lengths. Each outcome is the same as for the prompt alone.

    The outcome of a prompt for which the model computes values that are not finite, or cannot follow the grammar, is
    an error; the other prompts are answered.

    Raises:
        PromptError: a prompt is empty or leaves no room in the context.
        GenerationError: the JSON schema cannot be followed, or there is too little memory.
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
            if answer.has_ended:
                continue
            if isinstance(token_id, GenerationError):
                answer.error = token_id
            else:
                answer.push(token_id)
        if all(answer.has_ended for answer in answers):
            break
    return [answer.outcome(first_token - begin, time.perf_counter() - first_token) for answer in answers]


class _Answer:
    """The answer of one row while it is being generated: its tokens, its text and whether it has ended."""

    def __init__(
        self, config: GenerationConfig, tokenizer: Tokenizer, stop_token_ids: frozenset[int], max_new_tokens: int
    ):
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: GenerationError | None = None
        self._text: list[str] = []
        self._stop_token_ids = stop_token_ids
        self._max_new_tokens = max_new_tokens
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(config.stop)

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def push(self, token_id: int) -> Piece:
        """Add the next token. The answer must not have ended."""
        if token_id in self._stop_token_ids:
            return self._piece(None, self._rest(), "stop")
        self.token_ids.append(token_id)
        text = self._stop_strings.push(self._detokenizer.push(token_id))
        if not self._stop_strings.found and len(self.token_ids) == self._max_new_tokens:
            return self._piece(token_id, text + self._rest(), "stop" if self._stop_strings.found else "length")
        return self._piece(token_id, text, "stop" if self._stop_strings.found else None)

    def outcome(self, prefill_seconds: float, decode_seconds: float) -> Generated | GenerationError:
        """Return the finished answer, or why there is none."""
        if self.error is not None:
            return self.error
        assert self.finish_reason is not None, "the answer has not ended yet"
        return Generated(self.token_ids, "".join(self._text), self.finish_reason, prefill_seconds, decode_seconds)

    def _rest(self) -> str:
        text = self._stop_strings.push(self._detokenizer.finish())
        return text if self._stop_strings.found else text + self._stop_strings.finish()

    def _piece(self, token_id: int | None, text: str, finish_reason: FinishReason | None) -> Piece:
        self._text.append(text)
        self.finish_reason = finish_reason
        return Piece(token_id, text, finish_reason)


def _pieces(answer: _Answer, steps: Iterator[list[int | GenerationError]]) -> Iterator[Piece]:
    for (token_id,) in steps:
        if isinstance(token_id, GenerationError):
            raise token_id
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
) -> tuple[list[_Answer], Iterator[list[int | GenerationError]]]:
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
) -> Iterator[list[int | GenerationError]]:
    """Yield the next token of every row, whether its answer has ended or not; an error if the row has none."""
    embeds, lengths = pad_right(prompts)
    rows, longest, _ = embeds.shape
    cache = _new_cache(llm, rows, longest + max_new_tokens)
    history: list[list[int]] = [[] for _ in prompts]
    logits = prefill(llm, embeds, cache, lengths)
    positions = torch.full((1, 1), longest, device=embeds.device) if lengths is None else lengths[:, None]
    for end in range(longest + 1, longest + max_new_tokens + 1):
        logits = logits.float()
        is_usable = carry_information(logits)
        if guide is not None:
            logits = guide(logits, history)
        ids = sampler(logits)
        # The check travels with the ids, so that a step waits for the device only once.
        on_host: list[int] = ids.where(is_usable, _NOT_FINITE).tolist()
        for row, token_id in zip(history, on_host, strict=True):
            row.append(token_id)
        dead_ends = {} if guide is None else guide.dead_ends
        yield [
            _not_finite(embeds.dtype, end - longest) if token_id == _NOT_FINITE else dead_ends.get(row, token_id)
            for row, token_id in enumerate(on_host)
        ]
        logits = decode_one_token(llm, ids, positions, cache.up_to(end))
        positions = positions + 1


_NOT_FINITE = -1
"""Stands for the token of a row whose logits cannot be used."""


def carry_information(logits: torch.Tensor) -> torch.Tensor:
    """Return for each row of `[B, V]` whether a token can be chosen from it, `[B]` bool.

    It cannot if a value is NaN or infinite, or if all are equal: a norm whose input overflows returns zeros.
    """
    lowest, highest = logits.aminmax(dim=-1)  # NaN if any value is
    return (lowest > -torch.inf) & (highest < torch.inf) & ((lowest < highest) | (logits.shape[-1] == 1))


def _not_finite(dtype: torch.dtype, position: int) -> GenerationError:
    """Return the error of a row that has no usable logits for token `position` (from 1) of its answer."""
    name = str(dtype).removeprefix("torch.")
    others = [other for other in ("bfloat16", "float32") if other != name]
    advice = (
        "Its weights are damaged: download the checkpoint again."
        if name == "float32"
        else f"Its weights are too large for this dtype, or damaged: load it in {' or '.join(others)} (--dtype), or "
        "download the checkpoint again."
    )
    return GenerationError(
        f"The model computes values that are not finite in {name}, at token {position} of the answer. {advice}"
    )


def _new_cache(llm: LanguageModel, rows: int, tokens: int) -> Cache:
    try:
        return llm.new_cache(rows, tokens)
    except (RuntimeError, MemoryError):  # torch.OutOfMemoryError is a RuntimeError
        raise GenerationError(
            f"There is too little memory for a cache of {rows} × {tokens} tokens. Reduce max_new_tokens, the prompt or "
            "the batch."
        ) from None


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
