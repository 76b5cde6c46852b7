"""Video-MME (Fu et al. 2024, arXiv:2405.21075): accuracy, broken out as the benchmark's tables are.

The names are those of the columns of `lmms-lab/Video-MME` on the Hugging Face hub.
"""

from collections.abc import Sequence
from typing import NamedTuple

from vila_eval.metrics.grouped_accuracy import Accuracy, accuracy, accuracy_by_group

DURATIONS = ("short", "medium", "long")
DOMAINS = ("Knowledge", "Film & Television", "Sports Competition", "Artistic Performance", "Life Record", "Multilingual")
SUB_CATEGORIES = (
    "Humanity & History",
    "Literature & Art",
    "Biology & Medicine",
    "Finance & Commerce",
    "Astronomy",
    "Geography",
    "Law",
    "Life Tip",
    "Technology",
    "Animation",
    "Movie & TV Show",
    "Documentary",
    "News Report",
    "Esports",
    "Basketball",
    "Football",
    "Athletics",
    "Other Sports",
    "Stage Play",
    "Magic Show",
    "Variety Show",
    "Acrobatics",
    "Handicraft",
    "Food",
    "Fashion",
    "Daily Life",
    "Travel",
    "Pet & Animal",
    "Exercise",
    "Multilingual",
)
TASK_TYPES = (
    "Temporal Perception",
    "Spatial Perception",
    "Attribute Perception",
    "Action Recognition",
    "Object Recognition",
    "OCR Problems",
    "Counting Problem",
    "Temporal Reasoning",
    "Spatial Reasoning",
    "Action Reasoning",
    "Object Reasoning",
    "Information Synopsis",
)


class VideoMmeSample(NamedTuple):
    """One scored question, with the dataset's columns of the same names."""

    duration: str
    domain: str
    sub_category: str
    task_type: str
    is_correct: bool


class VideoMmeScores(NamedTuple):
    """Accuracies in [0, 1] in the benchmark's order; groups without samples are absent."""

    overall: Accuracy
    by_duration: dict[str, Accuracy]
    by_domain: dict[str, Accuracy]
    by_sub_category: dict[str, Accuracy]
    by_task_type: dict[str, Accuracy]


def score(samples: Sequence[VideoMmeSample]) -> VideoMmeScores:
    """Score Video-MME: right answers / answers overall and in each group, in [0, 1]; every question counts once.

    Raises: ConfigError when there is no sample, or a duration, domain, sub-category or task type is not one of the benchmark's.
    """
    correct = [sample.is_correct for sample in samples]
    return VideoMmeScores(
        overall=accuracy(correct),
        by_duration=accuracy_by_group("Video-MME duration", [sample.duration for sample in samples], correct, DURATIONS),
        by_domain=accuracy_by_group("Video-MME domain", [sample.domain for sample in samples], correct, DOMAINS),
        by_sub_category=accuracy_by_group("Video-MME sub-category", [sample.sub_category for sample in samples], correct, SUB_CATEGORIES),
        by_task_type=accuracy_by_group("Video-MME task type", [sample.task_type for sample in samples], correct, TASK_TYPES),
    )
