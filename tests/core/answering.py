"""Answers to prompts that are already embedded, from an engine of their own."""

from collections.abc import Iterator, Sequence

import torch

from vila_core.engine.answer import Generated, Piece
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.language import LanguageModel
from vila_core.tokenizer import Tokenizer

SMALL = EngineConfig(cache_bytes=16 << 20, max_batch=16)


def generate_each(
    llm: LanguageModel,
    embeds: Sequence[torch.Tensor],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    end: frozenset[int],
) -> list[Generated | GenerationError]:
    """Answer prompts `[T_i, D]` together."""
    return Engine(llm, tokenizer, end, SMALL).answer_all([EmbeddedPrompt(one) for one in embeds], config)


def generate(
    llm: LanguageModel,
    embeds: Sequence[torch.Tensor],
    config: GenerationConfig,
    tokenizer: Tokenizer,
    end: frozenset[int],
) -> list[Generated]:
    """Answer prompts `[T_i, D]` together, and raise the first error."""
    answers: list[Generated] = []
    for outcome in generate_each(llm, embeds, config, tokenizer, end):
        if isinstance(outcome, GenerationError):
            raise outcome
        answers.append(outcome)
    return answers


def stream(
    llm: LanguageModel, embeds: torch.Tensor, config: GenerationConfig, tokenizer: Tokenizer, end: frozenset[int]
) -> Iterator[Piece]:
    """Answer a prompt `[T, D]` piece by piece."""
    return iter(Engine(llm, tokenizer, end, SMALL).submit(EmbeddedPrompt(embeds), config))
