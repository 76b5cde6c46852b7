"""The share of a description that a generated image follows, counted in its pixels by the description's dataset."""

import json
from typing import Any

from vila_eval.metric import MeanMetric, Score
from vila_eval.task import Question

ATTRIBUTES = ("color", "shape", "position")


def score_drawing(answer: str, question: Question) -> Score:
    """Score an answer of `tasks.drawing`: JSON that has [right, of] for each attribute.

    Returns:
        `attributes`, the share of all colors, shapes and positions that are right; each of them alone; `count`, whether
        as many things were found as described; and `all right`. A picture that failed scores 0.
    """
    del question
    counts = _read(answer)
    if counts is None:
        names = ("attributes", *ATTRIBUTES, "count", "all right")
        return Score(dict.fromkeys(names, 0.0), unread="no picture")
    right, total = (sum(counts[name][place] for name in ATTRIBUTES) for place in (0, 1))
    shares = {name: counts[name][0] / counts[name][1] for name in (*ATTRIBUTES, "count")}
    return Score({"attributes": right / total, **shares, "all right": float(right == total)})


def _read(answer: str) -> dict[str, tuple[int, int]] | None:
    try:
        values: Any = json.loads(answer)
        counts = {name: (int(values[name][0]), int(values[name][1])) for name in (*ATTRIBUTES, "count")}
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        return None
    return counts if all(0 <= right <= of and of for right, of in counts.values()) else None


DRAWN_ATTRIBUTES = MeanMetric("drawn_attributes", score_drawing)
