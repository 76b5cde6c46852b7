"""Video-MME (Fu et al. 2024, arXiv:2405.21075): accuracy, broken out as the benchmark's tables are.

The names are those of the columns of `lmms-lab/Video-MME` on the Hugging Face hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vila_core.errors import ConfigError, unknown_name
from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.grouped_accuracy import Accuracy, accuracy, accuracy_by_group
from vila_eval.metrics.letter_readers import score_lmms_choice
from vila_eval.task import Question

DURATIONS = ("short", "medium", "long")
DOMAINS = (
    "Knowledge",
    "Film & Television",
    "Sports Competition",
    "Artistic Performance",
    "Life Record",
    "Multilingual",
)
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
DIMENSIONS = {"duration": DURATIONS, "domain": DOMAINS, "sub_category": SUB_CATEGORIES, "task_type": TASK_TYPES}


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
        by_duration=accuracy_by_group(
            "Video-MME duration", [sample.duration for sample in samples], correct, DURATIONS
        ),
        by_domain=accuracy_by_group("Video-MME domain", [sample.domain for sample in samples], correct, DOMAINS),
        by_sub_category=accuracy_by_group(
            "Video-MME sub-category", [sample.sub_category for sample in samples], correct, SUB_CATEGORIES
        ),
        by_task_type=accuracy_by_group(
            "Video-MME task type", [sample.task_type for sample in samples], correct, TASK_TYPES
        ),
    )


@dataclass(frozen=True)
class VideoMmeMetric:
    """Accuracy, in all and by duration, domain, sub-category and task type, in the benchmark's order, with standard errors.

    Answers are read by `letter_readers.extract_lmms_choice`.
    """

    name: str = "video_mme"

    def score(self, answer: str, question: Question) -> Score:
        for dimension, names in DIMENSIONS.items():
            if (group := question.groups[dimension]) not in names:
                raise ConfigError(unknown_name(f"Video-MME {dimension}", group, names))
        return score_lmms_choice(answer, question)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        overall, *groups = mean_measures(samples, group_by=tuple(DIMENSIONS))
        return [overall, *sorted(groups, key=_place)]


def _place(measure: Measure) -> tuple[int, int]:
    assert measure.group is not None
    dimension, name = measure.group
    return list(DIMENSIONS).index(dimension), DIMENSIONS[dimension].index(name)


VIDEO_MME_METRIC = VideoMmeMetric()
