"""Event-Bench and VNBench: the first character of the answer.

Sources: both benchmarks in NVlabs/VILA, and `evaluation_utils.py` of joez17/VideoNIAH.
"""

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text


def extract_initial(answer: str) -> str | None:
    """Return the first character, or None: "B) red" and "Blue" give "B"; "b" is returned and matches no option."""
    return require_text(answer, "answer").strip()[:1] or None


INITIAL = letter_metric("initial", lambda answer, _: extract_initial(answer))
"""VILA leaves out answers without a letter; here they are wrong."""
