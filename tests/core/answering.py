"""Prompts for engines of the small decoder of `conftest.py`, and their answers."""

from collections.abc import Iterator, Sequence

import torch

from vila_core.engine.answer import Generated, Piece
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import EmbeddedPrompt, EngineInput
from vila_core.engine.limits import EngineConfig
from vila_core.engine.prefix import MediaSpan
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.language import LanguageModel
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE
from vila_core.tokenizer import Tokenizer

PAGE_BYTES = 2 * 2 * 2 * 12 * PAGE_SIZE * 4
"""Keys and values of a page: 2 layers with 2 heads of 12 numbers of 4 bytes."""
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


class Text(EmbeddedPrompt):
    """A prompt of token ids, which can share its pages."""

    def __init__(self, decoder: Decoder, ids: Sequence[int], media: Sequence[MediaSpan] = ()):
        super().__init__(decoder.embed(torch.tensor(ids)).detach())
        self.ids = list(ids)
        self.media = media


def some_ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(2, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(tokens: int = 8) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=tokens)


def answer(engine: Engine, prompt: EngineInput, config: GenerationConfig | None = None) -> Generated:
    return engine.submit(prompt, config or greedy()).result()


def all_pages_are_free(engine: Engine) -> bool:
    stats = engine.stats()
    return (stats.queued, stats.reading, stats.answering, stats.pages_used) == (0, 0, 0, 0)
