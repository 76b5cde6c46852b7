"""VNBench (Zhao et al. 2024, arXiv:2406.09367): a question is right only if it is answered right in all four
orders of its options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vila_core.errors import ConfigError
from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.choices.eventbench import extract_initial
from vila_eval.metrics.choices.scoring import letter_score
from vila_eval.statistics import macro_estimate
from vila_eval.task import Question

TRIES = 4
ABILITIES = {"ret": "retrieval", "ord": "ordering", "cnt": "counting"}


@dataclass(frozen=True)
class VNBenchMetric:
    """Circular accuracy (the mean over types is the headline; also by ability and type), and "try_accuracy" per answer.

    All tries of a question share a video (`Question.cluster`); the type is in `Question.groups`. Answers are read by
    `extract_initial`. The mean over types follows `evaluation_utils.py` of joez17/VideoNIAH. VILA reports
    "try_accuracy", but leaves out answers without a letter. Questions that miss a try (`--limit`) have no circular
    accuracy.
    """

    name: str = "vnbench"

    def score(self, answer: str, question: Question) -> Score:
        scored = letter_score(extract_initial(answer), question)
        return Score({"try_accuracy": scored.values["accuracy"]}, scored.parsed, scored.unread)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        by_type = circular_accuracies(samples)
        by_ability = {
            ability: macro_estimate([part for name, part in by_type.items() if name.startswith(prefix)])
            for prefix, ability in ABILITIES.items()
            if any(name.startswith(prefix) for name in by_type)
        }
        return [
            Measure("accuracy", macro_estimate(list(by_type.values()))),
            mean_measures(samples, group_by=())[0],
            *(Measure("accuracy", part, group=("ability", name)) for name, part in by_ability.items()),
            *(Measure("accuracy", macro_estimate([part]), group=("type", name)) for name, part in by_type.items()),
        ]


def circular_accuracies(samples: Sequence[Scored]) -> Mapping[str, Sequence[float]]:
    """Return whether all four tries of each question are right (1 or 0), by type, sorted by type.

    Raises: ConfigError if no question has four tries.
    """
    tries: dict[tuple[str, str | None], list[float]] = {}
    for sample in samples:
        tries.setdefault((sample.question.groups["type"], sample.question.cluster), []).append(
            sample.score.values["try_accuracy"]
        )
    complete = {key: values for key, values in tries.items() if len(values) == TRIES}
    if not complete:
        raise ConfigError(f"VNBench got no question with all {TRIES} orders of its options. Choose a higher --limit.")
    return {
        kind: [float(all(values)) for (name, _), values in complete.items() if name == kind]
        for kind in sorted({kind for kind, _ in complete})
    }


VNBENCH_METRIC = VNBenchMetric()
