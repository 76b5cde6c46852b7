"""EgoSchema and CinePile, as VILA reads them: `parse_choice` of `llava/eval/mmmu_utils/eval_utils.py` in NVlabs/VILA.

lmms-eval's EgoSchema takes the first of "(B)", "B " and "B.". VILA's code reads no letter in "B. a cat".
"""

from vila_eval.metrics.choices.parsing import last_bracketed, last_spaced, strip_and_pad
from vila_eval.metrics.choices.scoring import letter_metric, option_letters


def extract_vila_choice(answer: str, letters: str) -> str | None:
    """Return the letter that comes last as "(B)", or else last as " B ", after `strip_and_pad`.

    VILA's code draws a random letter where this returns None; here such an answer is wrong.
    """
    text = strip_and_pad(answer)
    return last_bracketed(text, letters) or last_spaced(text, letters)


VILA_CHOICE = letter_metric(
    "vila_choice", lambda answer, question: extract_vila_choice(answer, option_letters(question))
)
