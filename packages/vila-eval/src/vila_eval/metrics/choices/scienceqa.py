"""ScienceQA: a lone letter, or "B." at the start of the answer.

Source: `sqa_process_results` in lmms-eval, which takes it from LLaVA.
"""

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text


def extract_llava_letter(answer: str) -> str | None:
    """Return the letter, upper case, of an answer that is only a letter ("b") or begins with "B."; otherwise None.

    White space around the answer is ignored. "b. a cat" and "(B)" hold no letter.
    """
    text = require_text(answer, "answer").strip()
    if len(text) == 1 and text.isalpha():
        return text.upper()
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else None


LLAVA_LETTER = letter_metric("llava_letter", lambda answer, _: extract_llava_letter(answer))
