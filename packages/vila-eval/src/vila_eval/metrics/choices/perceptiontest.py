"""Perception Test, multiple choice. Source: `perceptiontest_val_process_results_mc` in lmms-eval 0.3.0 and 0.7.3.

The benchmark's own code (google-deepmind/perception_test) takes the index of an option, not a text.
"""

import re

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text


def extract_perceptiontest_choice(answer: str) -> str | None:
    """Return the first of the capitals A to D that is a word of its own."""
    found = re.search(r"\b[A-D]\b", require_text(answer, "answer"))
    return found[0] if found else None


PERCEPTIONTEST_CHOICE = letter_metric("perceptiontest_choice", lambda answer, _: extract_perceptiontest_choice(answer))
