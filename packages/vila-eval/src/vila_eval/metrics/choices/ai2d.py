"""AI2D: exact match of the leading letter. Source: `flexible-extract` of AI2D in lmms-eval 0.3.0 and 0.7.3.

White space that is left after deleting punctuation is stripped here ("- B" is right), and kept there.
"""

import re

from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.exact_match import normalized_exact_match
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

_LEADING_LETTER = re.compile(r"\s*([A-Z])\.")


def extract_leading_letter(answer: str) -> str:
    """Return the capital before a full stop at the start of `answer` ("B. a cat" gives "B"), else `answer` itself.

    Only white space may come before it: "B", "(B)" and "b." are returned unchanged.
    """
    found = _LEADING_LETTER.match(require_text(answer, "answer"))
    return found[1] if found else answer


def _score(answer: str, question: Question) -> Score:
    letter = extract_leading_letter(answer)
    return Score(
        {"exact_match": normalized_exact_match(letter, question.answer)},
        letter,
        unread=None if len(letter.strip()) == 1 else "no letter at its start",
    )


LEADING_LETTER = MeanMetric("leading_letter", _score)
"""Case and punctuation are ignored in the comparison."""
