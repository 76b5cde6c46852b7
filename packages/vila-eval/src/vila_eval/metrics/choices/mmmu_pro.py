"""MMMU-Pro (Yue et al. 2024, arXiv:2409.02813): the letter after the last "Answer:", else by laxer rules than MMMU's.

Source: `parse_multi_choice_response` in `mmmu-pro/evaluate.py` of MMMU-Benchmark/MMMU, except that an answer without a
letter is wrong. The script draws a random letter there.
"""

from vila_eval.metrics.choices.parsing import last_choice
from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text


def extract_mmmu_pro_choice(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the only capital that is the letter of an option after the last "Answer:", even inside a word.

    If there is no such letter, return that of `last_choice`.
    """
    letters = "".join(chr(ord("A") + index) for index in range(len(options)))
    _, announced, tail = require_text(answer, "answer").rpartition("Answer:")
    if announced and len(found := [letter for letter in letters if letter in tail]) == 1:
        return found[0]
    return last_choice(answer, options)


MMMU_PRO_METRIC = letter_metric(
    "mmmu_pro", lambda answer, question: extract_mmmu_pro_choice(answer, tuple(question.options))
)
