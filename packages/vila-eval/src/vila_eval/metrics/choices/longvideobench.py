"""LongVideoBench. Source: `parse_multi_choice_response` of LongVideoBench in lmms-eval 0.3.0 and 0.7.3.

The benchmark's own README names lmms-eval as its evaluation.
"""

import re

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text

_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option is", "The correct option is", "Best answer:", "Best option:"),
)


def extract_longvideobench_choice(answer: str) -> str | None:
    """Return the first of the capitals A to E, even inside a word, after deleting "The best answer is" and the like.

    "Answer: B" gives "A". lmms-eval draws a random letter where this returns None; here such an answer is wrong.
    """
    text = require_text(answer, "answer").strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[A-E]", text)
    return found[0] if found else None


LONGVIDEOBENCH_CHOICE = letter_metric("longvideobench_choice", lambda answer, _: extract_longvideobench_choice(answer))
