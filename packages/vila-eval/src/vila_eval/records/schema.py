"""What a run writes: a record a sample, and the result of a task. Where it is written, and how: `vila_eval.records.storage`."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from vila_core.config import Config
from vila_eval.metric import Answered, Measure, Score, Scored, Unit
from vila_eval.statistics import Estimate
from vila_eval.task import Question

FORMAT = 1
"""Version of these records. A folder of another version is refused."""


class PromptPart(Config):
    """A part of a prompt as it was asked: a text, or a medium by its digest.

    Attributes:
        kind: what it is.
        text: of a text.
        digest: SHA-256 of a medium's bytes (of its pixels where it was in memory); None where it could not be read.
        file: the medium's file name, where it has one.
        frames: of a video, as asked for; None: the model's own number.
    """

    kind: Literal["text", "image", "video"]
    text: str | None = None
    digest: str | None = None
    file: str | None = None
    frames: int | None = None


class SampleRecord(Config):
    """One sample: what was asked, what the model answered, what that is worth.

    Attributes:
        index: place among the samples (several questions of one row follow one another).
        row: of the data that it asks.
        key: digest of everything that determines the answer; a record with another key is not used.
        answer: the text; empty where the sample failed.
        error: why the sample failed (unreadable media, too long a prompt); None where it did not.
        finish_reason: "stop", "length" or None.
        reference, options, groups, cluster, fields: of the `Question`.
        values, parsed, unread: of the `Score`; `values` is None before scoring, and where judging failed.
        judge_error: why judging failed.
    """

    id: str
    index: int
    row: int
    key: str
    prompt: tuple[PromptPart, ...]
    answer: str = ""
    error: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reference: Any = None
    options: tuple[str, ...] = ()
    groups: dict[str, str] = Field(default_factory=dict[str, str])
    cluster: str | None = None
    fields: dict[str, Any] = Field(default_factory=dict[str, Any])
    values: dict[str, float] | None = None
    parsed: str | None = None
    unread: str | None = None
    judge_error: str | None = None

    @property
    def question(self) -> Question:
        """The question without its media: enough to score the answer."""
        texts = [part.text for part in self.prompt if part.text is not None]
        return Question(self.id, texts, self.reference, self.options, self.groups, self.cluster, self.fields)

    def unscored(self) -> SampleRecord:
        """Return the sample as it was before it was scored."""
        return self.model_copy(update={"values": None, "parsed": None, "unread": None, "judge_error": None})

    @property
    def answered(self) -> Answered:
        """The question with its answer."""
        return Answered(self.question, self.answer)

    @property
    def scored(self) -> Scored:
        """The sample as metrics summarize it. `values` must be there."""
        assert self.values is not None, f"sample {self.id} has no score"
        return Scored(self.question, self.answer, Score(self.values, self.parsed, self.unread))


class MeasureRecord(Config):
    """A `Measure`; a standard error that is not known is null."""

    name: str
    value: float
    standard_error: float | None
    n: int
    higher_is_better: bool | None = True
    unit: Unit = "share"
    group: tuple[str, str] | None = None

    @classmethod
    def of(cls, measure: Measure) -> MeasureRecord:
        error = measure.estimate.standard_error
        return cls(
            name=measure.name,
            value=measure.estimate.mean,
            standard_error=None if math.isnan(error) else error,
            n=measure.estimate.n,
            higher_is_better=measure.higher_is_better,
            unit=measure.unit,
            group=measure.group,
        )

    @property
    def measure(self) -> Measure:
        error = math.nan if self.standard_error is None else self.standard_error
        return Measure(self.name, Estimate(self.value, error, self.n), self.higher_is_better, self.unit, self.group)


class ModelIdentity(Config):
    """The model that answered: the name of the results folder, the checkpoint as given, the digest of its files."""

    name: str
    source: str
    digest: str


class RunSettings(Config):
    """What determines the answers beside the model and the data. Batch size and workers do not."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    num_video_frames: int | None = None
    max_tiles: int | None = None
    chat_template: str | None = None
    dtype: str = "auto"
    limit: int | None = None


class Counts(Config):
    """Samples, by what became of them. `truncated`: the answer ended at max_new_tokens; `unread`: the metric could not read it."""

    samples: int
    failed: int = 0
    truncated: int = 0
    unread: int = 0
    judge_failed: int = 0


class RunFacts(Config):
    """What was run. `distribution` registers the task; `data` is what identifies its rows."""

    format: int = FORMAT
    task: str
    task_version: int
    distribution: str
    model: ModelIdentity
    settings: RunSettings
    data: dict[str, str]


class TaskResult(RunFacts):
    """`results.json`. `measures` is empty where the answers are scored elsewhere; the first is the headline."""

    metric: str | None
    judge: str | None = None
    measures: tuple[MeasureRecord, ...]
    counts: Counts
    submission: str | None = None

    @property
    def headline(self) -> MeasureRecord | None:
        return self.measures[0] if self.measures else None


class Timings(Config):
    """How long a run took; a resumed run counts what it did itself. Dates are ISO 8601 in UTC."""

    started: str
    finished: str
    answered: int
    seconds: float
    batch_size: int
    workers: int
    versions: dict[str, str] = Field(default_factory=dict[str, str])


class JudgeRecord(Config):
    """One exchange with a judge, kept for good.

    Attributes:
        id: of the sample.
        request: place among the requests about that sample.
        attempt: from 0, in the run that made it.
        model: as it was asked for.
        served_model: as the endpoint called it: the snapshot behind an alias.
        reply: None where there was none; then `error` says why.
    """

    id: str
    request: int
    attempt: int
    model: str
    messages: tuple[dict[str, Any], ...]
    reply: str | None
    temperature: float = 0.0
    served_model: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class JudgeSummary(Config):
    """What judging a task has taken so far; like `Timings`, it differs from run to run.

    Attributes:
        model: the judge.
        served_models: the endpoint's own names of it; several where the snapshot changed in between.
        samples, failed: that were to be judged; of them, those that got no verdict.
        requests: sent in all runs, failed ones too.
        reused: replies of earlier runs that this one took instead of asking.
        prompt_tokens, completion_tokens: in all runs, as the endpoint counted them.
        dollars: of those tokens; None where no prices were given.
    """

    model: str
    served_models: tuple[str, ...] = ()
    samples: int
    failed: int
    requests: int
    reused: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None = None
