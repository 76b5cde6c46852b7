"""Video-MME (Fu et al. 2024, arXiv:2405.21075): accuracy, broken down as in the benchmark's tables.

Group names are column values of `lmms-lab/Video-MME` on the Hugging Face hub.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vila_core.errors import ConfigError, unknown_name
from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.choices.scoring import letter_score
from vila_eval.metrics.inputs import require_text
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

# Two pairs lack a comma in the script, so that their texts are joined.
_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:"),
)


def extract_videomme_choice(answer: str) -> str | None:
    """Return the first of the capitals A to D, even inside a word, after deleting "The answer is" and the like.

    Source: `extract_characters_regex` of the benchmark's own `eval_your_results.py` (BradyFU/Video-MME), which
    leaves out answers without a letter; here they are wrong.
    """
    text = require_text(answer, "answer").strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else None


@dataclass(frozen=True)
class VideoMmeMetric:
    """Accuracy, overall and by duration, domain, sub-category and task type, in the benchmark's order.

    Answers are read by `extract_videomme_choice`.
    """

    name: str = "video_mme"

    def score(self, answer: str, question: Question) -> Score:
        for dimension, names in DIMENSIONS.items():
            if (group := question.groups[dimension]) not in names:
                raise ConfigError(unknown_name(f"Video-MME {dimension}", group, names))
        return letter_score(extract_videomme_choice(answer), question)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        overall, *groups = mean_measures(samples, group_by=tuple(DIMENSIONS))
        return [overall, *sorted(groups, key=_place)]


def _place(measure: Measure) -> tuple[int, int]:
    assert measure.group is not None
    dimension, name = measure.group
    return list(DIMENSIONS).index(dimension), DIMENSIONS[dimension].index(name)


VIDEO_MME_METRIC = VideoMmeMetric()
