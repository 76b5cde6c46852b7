"""MMBench's circular evaluation: a question is right only if it is answered right for every rotation of its options.

Liu et al. 2023, arXiv:2307.06281, section 4.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vila_eval.metric import Measure, Score, Scored, mean_measures
from vila_eval.metrics.choices.general import MULTIPLE_CHOICE
from vila_eval.task import Question

ROTATION = 1_000_000
"""The rows of a question have the indices q, q + 1000000, q + 2000000, …: one per rotation of its options."""


@dataclass(frozen=True)
class MmbenchMetric:
    """MMBench: circular accuracy (the headline), overall and by group, and the accuracy of the unrotated rows alone.

    Where `--limit` cuts off some rotations of a question, the remaining ones decide. Letters are read by
    `extract_letter`, and an answer that it cannot read is wrong; the benchmark's server asks a language model to read
    those. `Question.fields["index"]` is the row's index.
    """

    name: str = "mmbench"

    def score(self, answer: str, question: Question) -> Score:
        return MULTIPLE_CHOICE.score(answer, question)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        rotations: dict[int, list[Scored]] = {}
        for sample in samples:
            rotations.setdefault(sample.question.fields["index"] % ROTATION, []).append(sample)
        overall, *by_group = mean_measures([_all_right(members) for members in rotations.values()])
        unrotated = [sample for sample in samples if sample.question.fields["index"] < ROTATION]
        single = (
            [replace(measure, name="single_pass_accuracy") for measure in mean_measures(unrotated, group_by=())]
            if unrotated
            else []
        )
        return [overall, *single, *by_group]


def _all_right(rotations: Sequence[Scored]) -> Scored:
    lowest = min(sample.score.values["accuracy"] for sample in rotations)
    return replace(rotations[0], score=Score({"accuracy": lowest}))


MMBENCH_METRIC = MmbenchMetric()
