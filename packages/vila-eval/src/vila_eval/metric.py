"""Metrics: `score` rates one answer, `summarize` turns all scores of a task into its measures.

n samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

from pydantic import ConfigDict, model_serializer, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from vila_eval.statistics import Estimate, macro_estimate
from vila_eval.task import Question

Unit = Literal["share", "points"]
"""A share is in [0, 1] and shown in percent; points are shown as they are."""


@dataclass(frozen=True)
class Score:
    """The score of one answer.

    Attributes:
        values: one per measure, such as `{"accuracy": 1.0}`. If a benchmark scores its parts differently, a sample has
            only the values that apply to it.
        parsed: how the answer was parsed, if that differs from its text.
        unread: why the answer could not be parsed, such as "no letter found"; None if it could. Reports count these.
    """

    values: Mapping[str, float]
    parsed: str | None = None
    unread: str | None = None


@dataclass(frozen=True)
class Scored:
    """A question with its answer and score. A sample that failed (unreadable media) is scored as an empty answer."""

    question: Question
    answer: str
    score: Score


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Measure:
    """One number in a task's result.

    In JSON the estimate's fields are inlined as `value`, `standard_error` and `interval` (null if unknown) and `n`.

    Attributes:
        name: such as "accuracy".
        estimate: mean, standard error, 95 % interval and n. An unknown error is NaN.
        higher_is_better: the direction; None if neither is better (the share of answers that say yes).
        unit: "share" or "points".
        group: the group of samples that it covers, as (dimension, value), such as ("discipline", "Science"); None: all.
    """

    name: str
    estimate: Estimate
    higher_is_better: bool | None = True
    unit: Unit = "share"
    group: tuple[str, str] | None = None

    @property
    def value(self) -> float:
        return float(self.estimate.mean)

    @property
    def standard_error(self) -> float | None:
        """The standard error; None if it is unknown."""
        return None if math.isnan(self.estimate.standard_error) else float(self.estimate.standard_error)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval, (low, high); None if it is unknown."""
        return self.estimate.interval

    @property
    def n(self) -> int:
        return self.estimate.n

    @model_validator(mode="before")
    @classmethod
    def _read(cls, stored: Any) -> Any:
        if not isinstance(stored, dict):
            return stored  # called with arguments
        fields = dict(cast("dict[str, Any]", stored))
        error = fields.pop("standard_error", None)
        estimate = {
            "mean": fields.pop("value", None),
            "standard_error": math.nan if error is None else error,
            "n": fields.pop("n", None),
            "interval": fields.pop("interval", None),
        }
        return fields | {"estimate": estimate}

    @model_serializer
    def _write(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "n": self.n,
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
            "group": self.group,
        }


@runtime_checkable
class Metric(Protocol):
    """A metric: scores answers and summarizes the scores. Register one with the hook `vila_metrics`."""

    @property
    def name(self) -> str: ...

    def score(self, answer: str, question: Question) -> Score:
        """Score one answer. Raises `ConfigError` if the question's reference has the wrong form."""
        ...

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        """Return the measures of one or more samples, in the order of the data. The first measure is the headline."""
        ...


@dataclass(frozen=True)
class MeanMetric:
    """A metric whose measures are means over all samples and over each group of `Question.groups`.

    Attributes:
        name: the metric's name.
        function: returns a number for an answer (the measure then has the metric's name), or a `Score`.
        higher_is_better: the direction of all measures.
        unit: "share" or "points".
        group_by: dimensions of `Question.groups` to break down by; None: all.
    """

    name: str
    function: Callable[[str, Question], float | Score]
    higher_is_better: bool = True
    unit: Unit = "share"
    group_by: tuple[str, ...] | None = None

    def score(self, answer: str, question: Question) -> Score:
        result = self.function(answer, question)
        return result if isinstance(result, Score) else Score({self.name: float(result)})

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        return mean_measures(samples, higher_is_better=self.higher_is_better, unit=self.unit, group_by=self.group_by)


def mean_measures(
    samples: Sequence[Scored],
    *,
    higher_is_better: bool = True,
    unit: Unit = "share",
    group_by: Sequence[str] | None = None,
) -> list[Measure]:
    """Return the mean of each value over the samples that have it, for all samples and then for each group.

    Standard errors are clustered if questions name a cluster. Groups come in order of first appearance.
    """
    measures = [Measure(name, _mean(samples, name), higher_is_better, unit) for name in _names(samples)]
    for group, members in grouped(samples, group_by).items():
        measures += [Measure(name, _mean(members, name), higher_is_better, unit, group) for name in _names(members)]
    return measures


def _names(samples: Sequence[Scored]) -> list[str]:
    return list(dict.fromkeys(name for sample in samples for name in sample.score.values))


def grouped(samples: Sequence[Scored], group_by: Sequence[str] | None = None) -> dict[tuple[str, str], list[Scored]]:
    """Return the samples of each (dimension, value) of `Question.groups`, dimension by dimension."""
    dimensions = (
        list(dict.fromkeys(name for sample in samples for name in sample.question.groups))
        if group_by is None
        else group_by
    )
    groups: dict[tuple[str, str], list[Scored]] = {}
    for dimension in dimensions:
        for sample in samples:
            if dimension in sample.question.groups:
                groups.setdefault((dimension, sample.question.groups[dimension]), []).append(sample)
    return groups


def _mean(samples: Sequence[Scored], name: str) -> Estimate:
    return macro_mean([[sample for sample in samples if name in sample.score.values]], name)


def macro_mean(groups: Sequence[Sequence[Scored]], name: str) -> Estimate:
    """Return the mean over groups of their mean of a value; questions may share a cluster across groups."""
    values = [[sample.score.values[name] for sample in samples] for samples in groups]
    if all(sample.question.cluster is None for samples in groups for sample in samples):
        return macro_estimate(values)
    # A question without a cluster forms its own.
    clusters = [
        [
            ("question", number, index) if sample.question.cluster is None else ("cluster", sample.question.cluster)
            for index, sample in enumerate(samples)
        ]
        for number, samples in enumerate(groups)
    ]
    return macro_estimate(values, clusters)


def exact(value: float, n: int) -> Estimate:
    """Return an estimate that is not a mean over samples (a corpus score, a sum): its error is unknown."""
    return Estimate(value, math.nan, n)


@dataclass(frozen=True)
class JudgeRequest:
    """A question to a judge: the messages of one chat completion, as OpenAI's API takes them."""

    messages: Sequence[Mapping[str, object]]
    max_tokens: int = 512
    temperature: float = 0.0


@runtime_checkable
class JudgedMetric(Protocol):
    """A metric that needs a judge (another model behind an OpenAI-compatible endpoint).

    If the judge gives no usable reply, the sample is not scored 0: it is left out of the means and counted separately.
    """

    @property
    def name(self) -> str: ...

    @property
    def judge_model(self) -> str:
        """The model that the benchmark specifies; `--judge-model` overrides it, and both are recorded."""
        ...

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        """Return the question of each sample; its `fields` hold what the judge must see of the other answers.

        Most metrics return the samples' own questions. Video-ChatGPT asks whether two answers agree.
        """
        ...

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        """Return the requests about one answer: usually one; none if the answer can be scored without a judge."""
        ...

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        """Turn the replies, one per request, into a score.

        Raises `ValueError` for a reply without a verdict; the judge is then asked again.
        """
        ...

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        """As for `Metric`, over the samples that were judged."""
        ...


AnyMetric = Metric | JudgedMetric


@dataclass(frozen=True)
class Answered:
    """A question and its answer, for a submission file. The answer of a failed sample is empty."""

    question: Question
    answer: str


@dataclass(frozen=True)
class Submission:
    """The file to submit to a benchmark's own server.

    Attributes:
        filename: its name in the task's results folder.
        write: turns all samples, in the order of the data, into the file's text or bytes.
        server: URL of the server.
    """

    filename: str
    write: Callable[[Sequence[Answered]], str | bytes]
    server: str
