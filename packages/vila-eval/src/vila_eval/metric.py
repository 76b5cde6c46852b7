"""What a metric is: one answer in, a score out; all scores in, the measures of the task out.

n samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

from pydantic import ConfigDict, model_serializer, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from vila_eval.statistics import Estimate, estimate
from vila_eval.task import Question

Unit = Literal["share", "points"]
"""A share is in [0, 1] and shown in percent; points are shown as they are."""


@dataclass(frozen=True)
class Score:
    """What one answer is worth.

    Attributes:
        values: by the name of the measure, such as `{"accuracy": 1.0}`. Where a benchmark scores its parts differently, a value is
            there for the samples that it concerns.
        parsed: what the answer was read as, where that differs from its text.
        unread: why the answer could not be read, such as "no letter found"; None where it could. It is counted, not hidden.
    """

    values: Mapping[str, float]
    parsed: str | None = None
    unread: str | None = None


@dataclass(frozen=True)
class Scored:
    """A question with its answer's score. A sample that failed (unreadable media, say) is scored as the empty answer."""

    question: Question
    answer: str
    score: Score


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Measure:
    """One number in a task's result.

    In JSON the estimate's fields are inlined as `value`, `standard_error` (null if unknown) and `n`.

    Attributes:
        name: such as "accuracy".
        estimate: mean, standard error and n. An unknown error is NaN.
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
        }
        return fields | {"estimate": estimate}

    @model_serializer
    def _write(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "standard_error": self.standard_error,
            "n": self.n,
            "higher_is_better": self.higher_is_better,
            "unit": self.unit,
            "group": self.group,
        }


@runtime_checkable
class Metric(Protocol):
    """How answers are scored. Register one with the hook `vila_metrics`."""

    @property
    def name(self) -> str: ...

    def score(self, answer: str, question: Question) -> Score:
        """Score one answer. Raises `ConfigError` where the question's reference is not what the metric needs."""
        ...

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        """Return the measures of at least one sample; the first is the headline. Samples are in the data's order."""
        ...


@dataclass(frozen=True)
class MeanMetric:
    """A metric whose measures are means over the samples, in all and for each group of `Question.groups`.

    Attributes:
        name: of the metric.
        function: an answer and its question to a number (the measure is then called as the metric), or to a `Score`.
        higher_is_better: the direction of all measures.
        unit: "share" or "points".
        group_by: dimensions of `Question.groups` to break down by; None: all there are.
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
    """Return the mean of every value over the samples that have it, of all and then of each group, with standard errors.

    Errors are clustered where questions name a cluster. Groups come in the order in which they first appear.
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
    samples = [sample for sample in samples if name in sample.score.values]
    clusters = [sample.question.cluster for sample in samples]
    values = [sample.score.values[name] for sample in samples]
    if all(cluster is None for cluster in clusters):
        return estimate(values)
    # A question without a cluster is one of its own.
    return estimate(
        values, [("question", i) if cluster is None else ("cluster", cluster) for i, cluster in enumerate(clusters)]
    )


def exact(value: float, n: int) -> Estimate:
    """Return a measure that is no mean of samples (a corpus score, a sum), whose error is not known."""
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

    A reply that cannot be had or read is a judging failure: the sample is left out of the means and counted in a column of its
    own, never scored 0.
    """

    @property
    def name(self) -> str: ...

    @property
    def judge_model(self) -> str:
        """The pinned model that the benchmark is defined with; `--judge-model` overrides it, and both are recorded."""
        ...

    def requests(self, answer: str, question: Question) -> Sequence[JudgeRequest]:
        """Return what to ask about one answer: usually one request; none where the answer can be scored without a judge."""
        ...

    def read(self, replies: Sequence[str], answer: str, question: Question) -> Score:
        """Turn the replies, one a request, into a score. Raises `ValueError` for a reply without a verdict: it is asked again."""
        ...

    def summarize(self, samples: Sequence[Scored]) -> list[Measure]:
        """As for `Metric`, over the samples that were judged."""
        ...


@runtime_checkable
class JudgedTogether(Protocol):
    """A judged metric that shows the judge the answers to several questions at once (Video-ChatGPT asks whether two agree)."""

    def together(self, samples: Sequence[Answered]) -> Sequence[Question]:
        """Return the question of each sample, its `fields` holding what the judge must see of other samples' answers."""
        ...


AnyMetric = Metric | JudgedMetric


@dataclass(frozen=True)
class Answered:
    """A question and its answer, for a submission file. The answer of a failed sample is empty."""

    question: Question
    answer: str


@dataclass(frozen=True)
class Submission:
    """The file that a benchmark's own server takes.

    Attributes:
        filename: in the task's results folder.
        write: all samples, in the data's order, to the file's text, or to its bytes where it is no text.
        server: where to send it (a URL).
    """

    filename: str
    write: Callable[[Sequence[Answered]], str | bytes]
    server: str
