"""TallyQA: the number in an answer, as VILA scores it."""

import re

from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_DIGITS_OF_WORDS = {word: str(number) for number, word in enumerate(_WORDS)}
_DIGITS = re.compile(r"\d+")


def find_number(answer: str) -> str | None:
    """Return the first number of an answer in digits, or None: "There are 12 birds" -> "12", "two dogs" -> "2".

    1. The first run of digits, before any word: "one or 2" is 2, "-3" is 3, "1,000" is 1.
    2. The first number word from zero to twenty between spaces: "two." does not count.

    Source: `_number_word_to_numeral` of `llava/eval/tallyqa.py` in NVlabs/VILA.
    """
    text = require_text(answer, "answer").strip()
    if digits := _DIGITS.search(text):
        return digits[0]
    return next((_DIGITS_OF_WORDS[word] for word in text.lower().split() if word in _DIGITS_OF_WORDS), None)


def _score(answer: str, question: Question) -> Score:
    said = find_number(answer)
    return Score(
        {"accuracy": float(said == find_number(question.answer))},
        parsed=said,
        unread=None if said else "no number found",
    )


COUNTING = MeanMetric("counting", _score)
"""Share of answers whose first number equals the reference's."""
