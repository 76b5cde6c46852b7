"""The records that a run writes: one per sample, and the result of each task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast

from pydantic import Field, ValidationError

from vila_core.config import Config
from vila_core.errors import ConfigError, first_problem
from vila_eval.metric import Answered, Measure, Score, Scored
from vila_eval.task import Question
from vila_eval.texts import escape_all

FORMAT = 1
"""Version of these records. A folder with another version is refused."""


class PromptPart(Config):
    """One part of a prompt: text, or the digest of an image or video.

    Attributes:
        kind: "text", "image" or "video".
        text: the text of a text part.
        digest: SHA-256 of the file, or of the pixels for media in memory; None if it could not be read.
        file: the file's name, if there is a file.
        frames: frames requested from a video; None uses the model's default.
    """

    kind: Literal["text", "image", "video"]
    text: str | None = None
    digest: str | None = None
    file: str | None = None
    frames: int | None = None


class Record(Config):
    """Base class of records that grow during a run. Lone surrogates in added texts are escaped."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        escaped = None if update is None else cast("dict[str, Any]", escape_all(update))
        return super().model_copy(update=escaped, deep=deep)


class SampleRecord(Record):
    """One sample, from the question to the score: made when its row is asked, then answered, then scored.

    Attributes:
        index: position among the samples, in the order of the data. Until the answers are merged it is the row.
        row: the row of the data that the question comes from.
        key: digest of everything that determines the answer; a stored answer with another key is ignored.
        prompt: the prompt, with media replaced by their digests.
        answer: the answer's text; empty if the sample failed.
        error: why the sample failed (unreadable media, prompt too long); None if it did not.
        finish_reason: "stop", "length" or None.
        reference, options, groups, cluster, fields: from the `Question`.
        values, parsed, unread: from the `Score`; `values` is None before scoring, and if judging failed.
        judge_error: why judging failed.
        number, questions: question `number` of the `questions` that the row gives; not part of `samples.jsonl`.
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
    number: int = Field(default=0, exclude=True)
    questions: int = Field(default=1, exclude=True)

    @classmethod
    def unanswered(
        cls,
        question: Question,
        prompt: Sequence[PromptPart],
        key: str,
        row: int,
        *,
        number: int = 0,
        questions: int = 1,
    ) -> SampleRecord:
        """Return the record of a question before the model answers it.

        Raises:
            ConfigError: a part of the question other than its prompt is not JSON, or of another type than declared.
        """
        facts = (
            question.answer,
            list(question.options),
            dict(question.groups),
            question.cluster,
            dict(question.fields),
        )
        try:
            json.dumps(facts, allow_nan=False)
            return cls(
                id=question.id,
                index=row,
                row=row,
                key=key,
                prompt=tuple(prompt),
                reference=question.answer,
                options=tuple(question.options),
                groups=dict(question.groups),
                cluster=question.cluster,
                fields=dict(question.fields),
                number=number,
                questions=questions,
            )
        except ValidationError as error:
            raise ConfigError(f"Question '{question.id}', {first_problem(error).with_value}.") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"Question '{question.id}': all but the prompt must be JSON: {error}.") from None

    @property
    def question(self) -> Question:
        """The question without its media, which is enough to score the answer."""
        texts = [part.text for part in self.prompt if part.text is not None]
        return Question(self.id, texts, self.reference, self.options, self.groups, self.cluster, self.fields)

    def unscored(self) -> SampleRecord:
        """Return the sample without its score."""
        return self.model_copy(update={"values": None, "parsed": None, "unread": None, "judge_error": None})

    @property
    def answered(self) -> Answered:
        """The question with its answer."""
        return Answered(self.question, self.answer)

    @property
    def scored(self) -> Scored:
        """The question with its answer and score, for `summarize`. The sample must be scored."""
        assert self.values is not None, f"sample {self.id} has no score"
        return Scored(self.question, self.answer, Score(self.values, self.parsed, self.unread))


class ModelIdentity(Config):
    """The model that answered: the name of its results folder, its path as given, the digest of its files."""

    name: str
    source: str
    digest: str


class RunSettings(Config):
    """Settings that determine the answers, given the model and the data. Batch size and workers do not."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    num_video_frames: int | None = None
    max_tiles: int | None = None
    chat_template: str | None = None
    dtype: str = "auto"
    limit: int | None = None


class Counts(Config):
    """Numbers of samples. `truncated`: the answer ended at max_new_tokens; `unread`: the metric could not read it."""

    samples: int
    failed: int = 0
    truncated: int = 0
    unread: int = 0
    judge_failed: int = 0


class RunFacts(Config):
    """The task and settings of a run. `distribution` registers the task; `data` identifies its rows."""

    format: int = FORMAT
    task: str
    task_version: int
    distribution: str
    model: ModelIdentity
    settings: RunSettings
    data: dict[str, str]


class TaskResult(RunFacts):
    """`results.json`. The first measure is the headline; there are none if the answers are scored elsewhere."""

    metric: str | None
    judge: str | None = None
    measures: tuple[Measure, ...]
    counts: Counts
    submission: str | None = None

    @property
    def headline(self) -> Measure | None:
        return self.measures[0] if self.measures else None


class Timings(Config):
    """Duration and date of a run; a resumed run counts only its own work. Dates are ISO 8601 in UTC.

    Attributes:
        dtype: that of the weights, where the settings may say "auto"; empty in results of older versions.
    """

    started: str
    finished: str
    answered: int
    seconds: float
    batch_size: int
    workers: int
    dtype: str = ""
    versions: dict[str, str] = Field(default_factory=dict[str, str])


class JudgeRecord(Record):
    """One exchange with a judge. It is never deleted, except by --force.

    Attributes:
        id: the sample's id.
        request: position among the requests about that sample.
        attempt: starts at 0 in every run.
        model: the model that was requested.
        served_model: the model that the endpoint says it used (the snapshot behind an alias).
        reply: None if there was none; `error` says why.
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
    """Requests and tokens that judging a task has taken so far; like `Timings`, it differs from run to run.

    Attributes:
        model: the judge.
        served_models: the endpoint's names for it; several if the snapshot changed between requests.
        samples, failed: samples to judge, and how many of them got no verdict.
        requests: requests sent in all runs, including failed ones.
        reused: replies of earlier runs that this run used instead of asking.
        prompt_tokens, completion_tokens: over all runs, as the endpoint counted them.
        dollars: the price of those tokens; None without prices.
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
