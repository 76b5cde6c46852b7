"""Exact match: strict, or ignoring case and punctuation."""

import string

from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_answers, require_text

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS_OF_WORDS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}


def exact_match(prediction: str, references: str | list[str] | tuple[str, ...]) -> float:
    """Return 1.0 if `prediction` equals one of `references`, else 0.0. A single string is one reference.

    Source: `exact_match` of Hugging Face evaluate with its defaults. Raises `ConfigError` without references.
    """
    return float(require_text(prediction, "prediction") in require_answers(references))


def normalized_exact_match(prediction: str, references: str | list[str] | tuple[str, ...]) -> float:
    """Return 1.0 if `prediction` equals a reference, ignoring case, punctuation and outer white space, else 0.0.

    Punctuation (ASCII, `string.punctuation`) is deleted, not replaced by a space: "t-shirt" equals "tshirt", not
    "t shirt". Source: GQA, AI2D and ScienceQA in lmms-eval (`exact_match` with `ignore_case` and `ignore_punctuation`).
    lmms-eval strips replies first; here outer white space is stripped last. Raises `ConfigError` without references.
    """
    return float(_normalize(require_text(prediction, "prediction")) in map(_normalize, require_answers(references)))


def _normalize(text: str) -> str:
    return text.lower().translate(_WITHOUT_PUNCTUATION).strip()


EXACT_MATCH = MeanMetric("exact_match", lambda answer, question: exact_match(answer, question.answer))
NORMALIZED_EXACT_MATCH = MeanMetric(
    "normalized_exact_match",
    lambda answer, question: Score({"exact_match": normalized_exact_match(answer, question.answer)}),
)
