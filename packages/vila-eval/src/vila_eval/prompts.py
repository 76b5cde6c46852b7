"""Parts of prompts that many benchmarks share."""

import re
from collections.abc import Sequence

from vila_eval.metrics.inputs import require_options

LETTER_ONLY = "Answer with the option's letter from the given choices directly."
SHORT_ANSWER = "Answer the question using a single word or phrase."
"""The instructions that LLaVA-1.5 was trained with, and that lmms-eval and most models since ask with."""


def letter(index: int) -> str:
    """Return the letter of the option at `index`, from 0 to 25: "A" is the first."""
    return chr(ord("A") + index)


def lettered(options: Sequence[str]) -> str:
    r"""Return the options with their letters, one per line: "A. red\nB. blue".

    Raises `ConfigError` for no options, or more than 26.
    """
    return "\n".join(f"{letter(index)}. {option}" for index, option in enumerate(require_options(options)))


def multiple_choice_prompt(question: str, options: Sequence[str], instruction: str = LETTER_ONLY) -> str:
    """Return the question, its lettered options, and how to answer, each on lines of its own."""
    return f"{question}\n{lettered(options)}\n{instruction}"


def unlettered(option: str) -> str:
    """Return an option without the letter that some datasets write before it: "B. blue" and "(B) blue" give "blue"."""
    return re.sub(r"^(?:[A-Z][.)]|\([A-Z]\))\s*", "", option)
