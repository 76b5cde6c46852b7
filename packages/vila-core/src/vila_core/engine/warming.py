"""Warming an engine up.

On a GPU, kernels are compiled and CUDA graphs captured when something of a size comes for the first or second time.
That takes seconds, during which nobody is answered. Requests of random text, in all sizes that have graphs, make it
happen before the first request of a person.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from vila_core.engine.inputs import TextPrompt
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError, PromptError

if TYPE_CHECKING:
    from vila_core.engine.engine import Engine
    from vila_core.language import LanguageModel

ANSWER_TOKENS = 3
"""The first is chosen after the prompt, the second in the first step, and the third while another step runs."""
ROUNDS = tuple(GenerationConfig(max_new_tokens=ANSWER_TOKENS, temperature=heat, seed=0) for heat in (0.0, 1.0))
"""Greedy and sampled steps have graphs of their own. Two rounds, because a prompt's graph is captured in the second."""


def warm_up(engine: "Engine", llm: "LanguageModel", words: Sequence[int], *, all_sizes: bool) -> None:
    """Answer requests of random text, and forget them.

    Args:
        engine: answers nothing else meanwhile.
        llm: its language model.
        words: token ids of text.
        all_sizes: those of all graphs; otherwise one request.
    """
    draw = random.Random(0)
    for lengths in _lengths(engine) if all_sizes else [[1]]:
        for config in ROUNDS:
            prompts = [TextPrompt(llm, draw.choices(words, k=length)) for length in lengths]
            with suppress(PromptError, GenerationError):  # a small context or cache has no room for the longer ones
                engine.answer_all(prompts, config)
    engine.clear_cache()


def _lengths(engine: "Engine") -> Iterator[list[int]]:
    """Yield the lengths of prompts that are answered together: one, two that are read together, and many short ones."""
    from vila_core.language.paged_graphs import BUCKETS
    from vila_core.language.paged_prefill import SIZES

    most = engine.config.max_batch
    for size in SIZES:
        if size <= engine.config.chunk_tokens:
            yield [size]
            if most > 1:
                yield [size // 2] * 2
    for rows in BUCKETS:
        yield [1] * min(rows, most)
        if rows >= most:
            return
