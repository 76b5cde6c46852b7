"""ScienceQA: a lone letter, "B." at the start of the answer, or "The answer is B.".

Sources: `sqa_process_results` in lmms-eval 0.7.3; for the last form `models/run_gpt3.py` of lupantech/ScienceQA and
`llava/eval/eval_science_qa.py` of haotian-liu/LLaVA.
"""

import re

from vila_eval.metrics.choices.scoring import letter_metric
from vila_eval.metrics.inputs import require_text

_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def extract_llava_letter(answer: str) -> str | None:
    """Return the letter, upper case, by the first rule that finds one:

    1. The answer is only a letter, in either case, or begins with an upper-case letter and a full stop: "B. a cat".
    2. The answer contains "The answer is B." exactly once. As published, any character may follow the letter.

    White space around the answer is ignored. "b. a cat" and "(B)" hold no letter. lmms-eval lacks the second rule, and
    its version 0.3.0 never reads "B. a cat", since it lower-cases the answer first.
    """
    text = require_text(answer, "answer").strip()
    if len(text) == 1 and text.isalpha():
        return text.upper()
    if len(text) >= 2 and text[0].isupper() and text[1] == ".":
        return text[0]
    found = _SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


LLAVA_LETTER = letter_metric("llava_letter", lambda answer, _: extract_llava_letter(answer))
