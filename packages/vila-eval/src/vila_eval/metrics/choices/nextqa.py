"""NExT-QA, multiple choice. Source: `parse_multi_choice_response` of NExT-QA in lmms-eval 0.3.0 and 0.7.3.

The benchmark's own `eval_mc.py` (doc-doc/NExT-QA) takes the index of an option, not a text.
"""

from vila_eval.metrics.choices.parsing import last_choice
from vila_eval.metrics.choices.scoring import letter_metric


def extract_nextqa_choice(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the letter that `last_choice` finds.

    lmms-eval draws a random letter where this returns None; here such an answer is wrong.
    """
    return last_choice(answer, options)


NEXTQA_CHOICE = letter_metric(
    "nextqa_choice", lambda answer, question: extract_nextqa_choice(answer, tuple(question.options))
)
