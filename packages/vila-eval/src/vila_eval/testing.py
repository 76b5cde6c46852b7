"""Contract tests for benchmarks: call `check_task` from a plugin's own test suite.

from vila_eval.testing import check_task

def test_shapes():
    assert check_task(SHAPES)[0].estimate.mean == 1.0
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vila_core.errors import ConfigError
from vila_core.media import Image, Video
from vila_eval.data.sources import DataOptions
from vila_eval.judging.judge import judged_questions
from vila_eval.metric import AnyMetric, JudgedMetric, Measure, Metric, Scored
from vila_eval.records.schema import PromptPart, SampleRecord
from vila_eval.records.storage import decode, encode
from vila_eval.task import Question, Task, as_questions, resolve_metric


def check_task(task: Task, answer: Callable[[Question], str] | None = None, limit: int = 8) -> list[Measure]:
    """Take the first rows of a task's miniature (its source's `fixture`) from data to measures, without a model.

    Args:
        task: whose metric is an object or a registered name.
        answer: gives the answer to each question; None: the reference itself, or the first of several.
        limit: rows to take.

    Returns:
        The measures; empty for a judged metric, or without a metric. The submission file, if any, is made too.

    Raises:
        VilaError: the source has other columns, a medium cannot be decoded, or the metric refuses a question.
        ConfigError: ids are not unique, asking a row twice gives different questions, a question cannot be stored, or
            scores have different names.
    """
    with tempfile.TemporaryDirectory() as cache:
        rows = task.source.open(DataOptions(cache=Path(cache), fixtures=True))
        questions: list[Question] = []
        for index in range(min(limit, len(rows))):
            asked = as_questions(task, rows, index)
            _check_asked_again(task, asked, as_questions(task, rows, index))
            questions += asked
        for question in questions:
            _check_media(question)
    if not questions:
        raise ConfigError(f"Task '{task.name}' asks nothing of its first {limit} rows.")
    if len({question.id for question in questions}) < len(questions):
        raise ConfigError(f"Task '{task.name}' gives two questions one id: {[question.id for question in questions]}.")
    records = [
        _stored(task, index, question).model_copy(update={"answer": (answer or _reference)(question)})
        for index, question in enumerate(questions)
    ]
    if task.submission is not None:
        task.submission.write([record.answered for record in records])
    return _measures(task, resolve_metric(task), records)


def _check_asked_again(task: Task, first: Sequence[Question], second: Sequence[Question]) -> None:
    def texts(questions: Sequence[Question]) -> list[tuple[str, list[str]]]:
        return [(question.id, [part for part in question.prompt if isinstance(part, str)]) for question in questions]

    if texts(first) != texts(second):
        raise ConfigError(
            f"Task '{task.name}' asks a row in two ways, {texts(first)} and {texts(second)}: "
            "a run could not be resumed."
        )


def _check_media(question: Question) -> None:
    for part in question.prompt:
        if isinstance(part, Image):
            part.load()
        elif isinstance(part, Video):
            part.load(2)


def _stored(task: Task, index: int, question: Question) -> SampleRecord:
    """Return the record of a question, through its JSON: all that a metric gets to see of it later."""
    texts = [PromptPart(kind="text", text=part) for part in question.prompt if isinstance(part, str)]
    try:
        record = SampleRecord.unanswered(question, texts, "", index)
    except ConfigError as error:
        raise ConfigError(f"Task '{task.name}': {error}") from None
    return decode(SampleRecord, encode(record), f"question '{question.id}'")


def _measures(task: Task, metric: AnyMetric | None, records: Sequence[SampleRecord]) -> list[Measure]:
    if metric is None:
        return []
    if isinstance(metric, JudgedMetric):
        for record, question in zip(
            records, judged_questions(metric, [record.answered for record in records]), strict=True
        ):
            for answer in (record.answer, ""):
                json.dumps([list(request.messages) for request in metric.requests(answer, question)])
        return []
    assert isinstance(metric, Metric), type(metric)
    scores = [metric.score(record.answer, record.question) for record in records]
    # A sample that failed is scored as the empty answer, so a metric must take that.
    for score in (*scores, *(metric.score("", record.question) for record in records)):
        if set(score.values) != set(scores[0].values):
            raise ConfigError(
                f"Metric '{metric.name}' gives scores of different names: "
                f"{set(score.values)} and {set(scores[0].values)}."
            )
    return metric.summarize(
        [Scored(record.question, record.answer, score) for record, score in zip(records, scores, strict=True)]
    )


def _reference(question: Question) -> str:
    found: object = question.answer
    return str(found[0]) if isinstance(found, Sequence) and not isinstance(found, str) else str(found)
