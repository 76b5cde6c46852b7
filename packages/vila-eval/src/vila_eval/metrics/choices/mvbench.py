"""MVBench. Source: `mcq_acc` of MVBench in lmms-eval 0.3.0 and 0.7.3.

The benchmark's own `check_ans` (`video_chat2/mvbench.ipynb` of OpenGVLab/Ask-Anything) compares the first word, after
making the model begin with "Best option:(", and counts an empty answer as right.
"""

import re

from vila_eval.metric import Score
from vila_eval.metrics.choices.scoring import letter_score
from vila_eval.metrics.inputs import require_text
from vila_eval.metrics.vqa import strip_punctuation
from vila_eval.task import Question


def extract_mvbench_choice(answer: str) -> str | None:
    """Return the letter, A to E in either case, of an answer such as "b. a cat", or else the first that is a word.

    Words are separated after deleting punctuation, so "A man opens the door" gives "A".
    """
    text = require_text(answer, "answer").strip()
    if leading := re.match(r"([A-E])\.\s*.+$", text, re.IGNORECASE):
        return leading[1].upper()
    found = re.search(r"\b[A-E]\b", strip_punctuation(text.replace("\n", " ").replace("\t", " ")), re.IGNORECASE)
    return found[0].upper() if found else None


def score_mvbench(answer: str, question: Question) -> Score:
    """Score the letter that `extract_mvbench_choice` reads."""
    return letter_score(extract_mvbench_choice(answer), question)
