"""Bounding boxes in answers and their intersection over union (IoU), in both pixel conventions.

A box is (x1, y1, x2, y2) in pixels: left, top, right, bottom, with x1 <= x2 and y1 <= y2.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from vila_core.errors import ConfigError, unknown_name
from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.inputs import require_text
from vila_eval.task import Question

Coordinates = Literal["pixels", "normalized", "digits"]
Convention = Literal["continuous", "inclusive"]

_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


class Box(NamedTuple):
    """Left, top, right and bottom, in pixels unless stated otherwise."""

    x1: float
    y1: float
    x2: float
    y2: float


def parse_box(answer: str, width: int, height: int, coordinates: Coordinates) -> Box | None:
    """Return the first "[x1, y1, x2, y2]" of an answer in pixels, or None if there is none or its corners are swapped.

    `width` and `height` are the image's, in pixels. `coordinates` says how to interpret the numbers; it is never
    guessed:

    - `pixels`: unchanged.
    - `normalized`: x * width, y * height.
    - `digits`: VILA's RefCOCO format (`llava/eval/refcoco.py`): four bare integers are the digits after the decimal
      point ("50" and "500" are both 0.5), then as `normalized`. If any of the four is not a bare integer, all are
      `normalized`.

    Boxes are not clipped to the image.
    Raises: ConfigError when `answer` is not text, the image has no area, or `coordinates` is unknown.
    """
    _require_known("coordinates", coordinates, get_args(Coordinates))
    _require_area(width, height)
    match = _BOX.search(require_text(answer, "answer"))
    if match is None:
        return None
    written = match.groups()
    if coordinates == "digits" and all(number.isdigit() for number in written):
        written = tuple(f"0.{number}" for number in written)
    x_scale, y_scale = (1, 1) if coordinates == "pixels" else (width, height)
    x1, y1, x2, y2 = (float(number) for number in written)
    box = Box(x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale)
    return box if _is_proper(box) else None


def unpad_square(box: Box, width: int, height: int) -> Box:
    """Convert a box of the image padded to a square into a box of the image, all in pixels.

    x - (n - width) / 2 and y - (n - height) / 2, where n is the longer side. For VILA's `llava` box format, whose
    numbers are fractions of the padded square: parse with n as width and height, then unpad.
    Raises: ConfigError when the image has no area.
    """
    _require_area(width, height)
    longer = max(width, height)
    x_pad, y_pad = (longer - width) / 2, (longer - height) / 2
    return Box(box.x1 - x_pad, box.y1 - y_pad, box.x2 - x_pad, box.y2 - y_pad)


def box_iou(first: Box, second: Box, convention: Convention) -> float:
    """Return IoU = intersection / (area of first + area of second - intersection), in [0, 1].

    `continuous`: corners are points, width = x2 - x1 (COCO, torchvision). Two boxes without area have IoU 0.
    `inclusive`: corners are the outermost pixels, width = x2 - x1 + 1; both boxes must be in pixels (VILA's RefCOCO).
    Boxes less than one pixel apart overlap.
    Raises: ConfigError when a box has x1 > x2 or y1 > y2 or is not finite, or the convention is unknown.
    """
    _require_known("convention", convention, get_args(Convention))
    for box in (first, second):
        if not _is_proper(box):
            raise ConfigError(
                f"Got the box {list(box)}. Expected four finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2."
            )
    extra = 1 if convention == "inclusive" else 0
    overlap_width = max(0, min(first.x2, second.x2) - max(first.x1, second.x1) + extra)
    overlap_height = max(0, min(first.y2, second.y2) - max(first.y1, second.y1) + extra)
    intersection = overlap_width * overlap_height
    union = sum((box.x2 - box.x1 + extra) * (box.y2 - box.y1 + extra) for box in (first, second)) - intersection
    return float(intersection / union) if union > 0 else 0.0


def box_accuracy(
    predicted: Sequence[Box | None], expected: Sequence[Box], convention: Convention, threshold: float = 0.5
) -> float:
    """Return the share of predictions with IoU >= `threshold`, in [0, 1]. None, for no box, is wrong.

    RefCOCO's Acc@0.5, with `>=` as in VILA's `llava/eval/refcoco.py`. `threshold` is in (0, 1].
    Raises: ConfigError when the lengths differ, there is no box, the threshold is out of range, or a box is invalid.
    """
    if len(predicted) != len(expected) or not expected:
        raise ConfigError(
            f"Got {len(predicted)} predicted boxes for {len(expected)} expected ones. Expected equally many, at least "
            "one."
        )
    if not 0 < threshold <= 1:
        raise ConfigError(f"Got {threshold} as the IoU threshold. Expected more than 0 and at most 1.")
    hits = [
        box is not None and box_iou(box, truth, convention) >= threshold
        for box, truth in zip(predicted, expected, strict=True)
    ]
    return sum(hits) / len(hits)


def _is_proper(box: Box) -> bool:
    return all(math.isfinite(number) for number in box) and box.x1 <= box.x2 and box.y1 <= box.y2


def _require_area(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ConfigError(f"Got an image of {width}x{height}. Expected a width and a height of at least one pixel.")


def _require_known(kind: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise ConfigError(unknown_name(kind, got, known))


@dataclass(frozen=True)
class BoxAccuracyMetric:
    """Accuracy of one box per answer, by the inclusive convention (VILA's) and by the continuous one.

    The question's answer is the box [x1, y1, x2, y2] in pixels of the image, whose size is in `fields["width"]` and
    `fields["height"]` (None if the image cannot be read).

    Attributes:
        coordinates: how to interpret the numbers of an answer; see `parse_box`.
        padded: whether fractions are of the image padded to a square, as in VILA's box format `llava`; see
            `unpad_square`.
        threshold: smallest IoU that counts as right.
    """

    name: str = "box_accuracy"
    coordinates: Coordinates = "digits"
    padded: bool = True
    threshold: float = 0.5

    def score(self, answer: str, question: Question) -> Score:
        box = self._read(answer, question)
        expected = Box(*question.answer)
        conventions: dict[str, Convention] = {"accuracy": "inclusive", "accuracy_continuous": "continuous"}
        return Score(
            {
                name: 0.0 if box is None else box_accuracy([box], [expected], convention, self.threshold)
                for name, convention in conventions.items()
            },
            parsed=None if box is None else str([round(number, 1) for number in box]),
            unread="no box found" if box is None else None,
        )

    def _read(self, answer: str, question: Question) -> Box | None:
        width, height = question.fields["width"], question.fields["height"]
        if width is None or height is None:
            return None
        if not self.padded:
            return parse_box(answer, width, height, self.coordinates)
        box = parse_box(answer, max(width, height), max(width, height), self.coordinates)
        return box if box is None else unpad_square(box, width, height)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        return mean_measures(samples)


BOX_ACCURACY = BoxAccuracyMetric()
"""RefCOCO's Acc@0.5 for answers in VILA's box format `llava`."""
