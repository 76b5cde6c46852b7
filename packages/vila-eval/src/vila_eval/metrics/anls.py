"""ANLS: average normalized Levenshtein similarity, for DocVQA, InfoVQA and other reading tasks."""

from vila_core.errors import ConfigError
from vila_eval.metric import MeanMetric
from vila_eval.metrics.inputs import require_answers, require_text


def anls(prediction: str, references: str | list[str] | tuple[str, ...], threshold: float = 0.5) -> float:
    """Return the best similarity s over the references, or 0.0 where s < `threshold`; in [0, 1].

    s = 1 - distance / longer length, both of the normalized strings: lower case, outer white space stripped, inner runs
    of white space collapsed to one space. The script of the Robust Reading Competition and lmms-eval divide by the
    lengths before normalization, so padding an answer with spaces raises its score there: "cd        " against "ab"
    gives 0.8, and 0 here. Two empty strings score 1. An s of exactly `threshold` counts, as in that script (the paper's
    inequality excludes it).

    Source: Biten et al. 2019 (arXiv 1907.00490), eq. 1; rrc.cvc.uab.es, task 17. The benchmark's score is the average
    over samples. Raises `ConfigError` without references, or for a `threshold` outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"ANLS threshold is {threshold}; expected a number from 0 to 1, usually 0.5.")
    given = _normalize(require_text(prediction, "prediction"))
    best = max(_similarity(given, _normalize(reference)) for reference in require_answers(references))
    return best if best >= threshold else 0.0


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    return (longer - levenshtein(a, b)) / longer if longer else 1.0


def levenshtein(a: str, b: str) -> int:
    """Return the smallest number of single-character insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))  # row[j]: distance from the part of `a` read so far to b[:j]
    for i, letter in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != other))
    return row[-1]


ANLS = MeanMetric("anls", lambda answer, question: anls(answer, question.answer))
