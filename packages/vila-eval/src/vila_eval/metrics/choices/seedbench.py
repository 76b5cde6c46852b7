"""SEED-Bench: the first character of the answer. Source: `seed_process_result` in lmms-eval 0.3.0 and 0.7.3.

The benchmark's own `eval.py` (AILab-CVC/SEED-Bench) compares the likelihoods of the options instead.
"""

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text


def extract_first_character(answer: str) -> str | None:
    """Return the first character, upper case, or None for an empty answer. "Both" gives "B"."""
    return require_text(answer, "answer").strip()[:1].upper() or None


FIRST_CHARACTER = letter_metric("first_character", lambda answer, _: extract_first_character(answer))
