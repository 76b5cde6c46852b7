"""Macro averages: the mean of the means of groups, where each group counts once, whatever its size.

G groups, n samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vila_eval.metric import Measure, Score, Scored, grouped, mean_measures
from vila_eval.statistics import Estimate
from vila_eval.task import Question


def macro_average(parts: Sequence[Estimate]) -> Estimate:
    """Return the mean of the groups' means, sum(mean) / G, over n samples in total.

    The standard error is sqrt(sum(error²)) / G, for independent groups.
    """
    error = math.sqrt(math.fsum(part.standard_error**2 for part in parts)) / len(parts)
    return Estimate(math.fsum(part.mean for part in parts) / len(parts), error, sum(part.n for part in parts))


@dataclass(frozen=True)
class MacroMetric:
    """Mean accuracy of the groups of one dimension, "average" (the headline); then accuracy, overall and by group.

    Attributes:
        name: name of the metric.
        function: maps an answer and its question to a `Score` with the value "accuracy".
        over: the dimension of `Question.groups`, which every question has. Groups without samples (`--limit`) do not
            count.
    """

    name: str
    function: Callable[[str, Question], Score]
    over: str

    def score(self, answer: str, question: Question) -> Score:
        return self.function(answer, question)

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        parts = [mean_measures(members, group_by=())[0].estimate for members in grouped(samples, (self.over,)).values()]
        return [Measure("average", macro_average(parts)), *mean_measures(samples)]
