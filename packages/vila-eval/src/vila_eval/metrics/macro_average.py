"""Macro averages: the mean of the means of groups, where each group counts once, whatever its size.

G groups, n samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vila_eval.metric import Measure, Score, Scored, grouped, macro_mean, mean_measures
from vila_eval.task import Question


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
        parts = list(grouped(samples, (self.over,)).values())
        return [Measure("average", macro_mean(parts, "accuracy")), *mean_measures(samples)]
