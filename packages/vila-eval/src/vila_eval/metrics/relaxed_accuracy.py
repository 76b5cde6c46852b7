"""ChartQA's relaxed accuracy, as two separate metrics: as published, and a strict variant."""

import math
import re
from decimal import Decimal

from vila_core.errors import ConfigError
from vila_eval.metric import MeanMetric, Score
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

_NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+)\s*%?", re.ASCII)
_FOUR_DIGITS = re.compile(r"\d{4}", re.ASCII)
_YEARS = range(1800, 2101)


def relaxed_accuracy(prediction: str, target: str, tolerance: float = 0.05) -> float:
    """Return 1.0 if |prediction - target| / |target| <= `tolerance`, or if texts are equal ignoring case; else 0.0.

    A number is anything that `float()` accepts; a final "%" divides it by 100. The published rules are kept, so that
    scores
    compare: with a target of 0 the texts are compared ("0.0" is not "0"), "5" is not "5%", "1,000" is not "1000", and
    2013 is right for 2010. `strict_relaxed_accuracy` handles these differently.

    Source: Masry et al. 2022 (arXiv 2203.10244), section 5.1; `relaxed_correctness` of google-research/pix2struct,
    which Qwen-VL and lmms-eval use. Raises `ConfigError` for a `tolerance` that is negative or not finite.
    """
    _check(tolerance)
    number, expected = (
        _published_number(require_text(prediction, "prediction")),
        _published_number(require_text(target, "target")),
    )
    if number is None or not expected:
        return float(prediction.lower() == target.lower())
    return float(abs(number - expected) / abs(expected) <= tolerance)


def _published_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def strict_relaxed_accuracy(prediction: str, target: str, tolerance: float = 0.05) -> float:
    """Return 1.0 if `prediction` is right by the first of these rules that applies to `target`, else 0.0.

    1. Years: for a target of exactly four digits, from 1800 to 2100, the number must be equal. This also applies to a
       count such as "2010", which cannot be told from a year without the question.
    2. Numbers: |prediction - target| <= `tolerance` * |target|, computed in decimal, so 1.05 is right for 1. A target
       of 0 accepts 0 in any spelling ("0.0", "-0", "0%").
    3. Otherwise the texts must be equal, ignoring case, a final period and the amount of white space.

    A number has an optional sign, digits with or without "," between thousands, an optional fraction and an optional
    "%", which is a unit and does not scale: "5%" is 5, not 0.05. "1,00", "nan", "1_000", "1e3" and "$5" are text. This
    metric is our own: do not compare its scores with those of `relaxed_accuracy`.
    Raises `ConfigError` for a `tolerance` that is negative or not finite.
    """
    _check(tolerance)
    given, wanted = _tidy(require_text(prediction, "prediction")), _tidy(require_text(target, "target"))
    number, expected = _strict_number(given), _strict_number(wanted)
    if number is None or expected is None:
        return float(given == wanted)
    if _FOUR_DIGITS.fullmatch(wanted) and int(wanted) in _YEARS:
        return float(number == expected)
    return float(abs(number - expected) <= Decimal(str(tolerance)) * abs(expected))


def _tidy(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _strict_number(text: str) -> Decimal | None:
    found = _NUMBER.fullmatch(text)
    return Decimal(found[1].replace(",", "")) if found else None


def _check(tolerance: float) -> None:
    if not 0 <= tolerance < math.inf:  # NaN too
        raise ConfigError(f"Relaxed accuracy's tolerance is {tolerance}; expected a share of the target, such as 0.05.")


def _score_both(answer: str, question: Question) -> Score:
    answer = answer.strip()
    return Score(
        {
            "relaxed_accuracy": relaxed_accuracy(answer, question.answer),
            "strict_relaxed_accuracy": strict_relaxed_accuracy(answer, question.answer),
        }
    )


RELAXED_ACCURACY = MeanMetric(
    "relaxed_accuracy", lambda answer, question: relaxed_accuracy(answer.strip(), question.answer)
)
STRICT_RELAXED_ACCURACY = MeanMetric(
    "strict_relaxed_accuracy", lambda answer, question: strict_relaxed_accuracy(answer.strip(), question.answer)
)
CHARTQA = MeanMetric("chartqa", _score_both)
"""Both variants under their own names; the published one is the headline."""
