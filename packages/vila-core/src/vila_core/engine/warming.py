"""Warming an engine up.

On a GPU, kernels are compiled and CUDA graphs captured when something of a size comes for the first or second time.
That takes seconds, during which no request is answered. Requests of random text, in all sizes that have graphs, make it
happen before the first request of a person.
"""

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vila_core.engine.inputs import TextPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.sharing import CHUNKS_AT_ONCE
from vila_core.errors import GenerationError, warn
from vila_core.language.page_size import PAGE_SIZE

if TYPE_CHECKING:
    from vila_core.engine.engine import Engine
    from vila_core.language import LanguageModel

USUAL = (
    GenerationConfig(),
    GenerationConfig(temperature=1.0),
    GenerationConfig(temperature=1.0, top_p=0.9),
)
"""Settings of most requests. Each has step graphs of its own (see `StepKind`)."""
ANSWER_TOKENS = 3
"""The first is chosen after the prompt, the second in the first step, and the third while another step runs."""


def warm_up(
    engine: "Engine",
    llm: "LanguageModel",
    words: Sequence[int],
    configs: Sequence[GenerationConfig] = USUAL,
    *,
    all_sizes: bool,
) -> None:
    """Answer requests of random text, and forget them. What fails is a warning.

    Args:
        engine: answers nothing else meanwhile.
        llm: its language model.
        words: token ids of text.
        configs: settings that requests will have, at least one.
        all_sizes: those of all graphs; otherwise one request for each of `configs`.
    """
    draw = random.Random(0)
    configs = [one.model_copy(update={"max_new_tokens": ANSWER_TOKENS, "seed": 0}) for one in configs]

    def text(length: int) -> list[int]:
        return draw.choices(words, k=length)

    def answer(prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        outcomes = engine.answer_all([TextPrompt(llm, ids) for ids in prompts], config)
        if error := next((one for one in outcomes if isinstance(one, GenerationError)), None):
            warn(f"Warming up failed for {len(prompts)} prompts of {len(prompts[0])} tokens: {error}")

    with engine.uncounted():
        for config in configs:
            answer([text(1)], config)
        if not all_sizes:
            return
        longest = min(llm.config.max_length, engine.stats().pages * PAGE_SIZE) - ANSWER_TOKENS
        beginning: list[int] = []
        for read, lengths in prompt_lengths(engine.config, longest):
            if len(beginning) != read:
                beginning = text(read)
                answer([beginning], configs[0])  # what begins alike has been read then
            for _ in range(2):  # a prompt's graph is captured when its size comes for the second time
                answer([beginning + text(length) for length in lengths], configs[0])
        for rows in step_sizes(engine.config.max_batch):
            for config in configs:
                answer([text(1) for _ in range(rows)], config)


def prompt_lengths(config: EngineConfig, longest: int) -> Iterator[tuple[int, list[int]]]:
    """Yield what is read together, for each graph of prompts: tokens that are in the cache, and those to read of each.

    Args:
        config: of the engine.
        longest: tokens of the longest prompt that there is room for.
    """
    from vila_core.language.paged_prefill import SHORT_CONTEXT, SIZES

    known = SHORT_CONTEXT + PAGE_SIZE  # whole pages, so that the rest is read as a long context
    for read in (0, known) if config.shares_prefixes else (0,):
        for size in SIZES:
            if size <= config.chunk_tokens * CHUNKS_AT_ONCE and read + size <= longest:
                yield read, [size]
            if size <= config.chunk_tokens and read + size // 2 <= longest and config.max_batch > 1:
                yield read, [size // 2] * 2


def step_sizes(max_batch: int) -> list[int]:
    """Return the numbers of rows that have step graphs."""
    from vila_core.language.paged_graphs import bucket  # needs Triton

    return sorted({bucket(rows, max_batch) for rows in range(1, max_batch + 1)})
