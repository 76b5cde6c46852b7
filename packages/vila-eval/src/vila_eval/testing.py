"""Contract tests for benchmarks: call `check_task` from a plugin's own test suite.

from vila_eval.testing import check_task

def test_shapes():
    assert check_task(SHAPES)[0].estimate.mean == 1.0
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vila_core.errors import ConfigError
from vila_core.media import Image, Video
from vila_eval.metric import Answered, Measure, Metric, Scored
from vila_eval.sources import DataOptions
from vila_eval.task import Question, Task, as_questions, resolve_metric


def check_task(task: Task, answer: Callable[[Question], str] | None = None, limit: int = 8) -> list[Measure]:
    """Take the first rows of a task's miniature (its source's `fixture`) from data to measures, without a model.

    Args:
        task: whose metric is an object or a registered name.
        answer: gives the answer to each question; None: the reference itself, or the first of several.
        limit: rows to take.

    Returns:
        The measures; empty for a judged metric or a task without one (then its submission file is written, if it has one).

    Raises:
        VilaError: the source has other columns, a medium cannot be decoded, or the metric refuses a question.
        ConfigError: ids are not unique, a question is not JSON, or the source cannot be sent to a worker.
    """
    pickle.loads(pickle.dumps(task.source))  # noqa: S301 - our own bytes
    with tempfile.TemporaryDirectory() as cache:
        rows = task.source.open(DataOptions(cache=Path(cache), fixtures=True))
        questions = [question for index in range(min(limit, len(rows))) for question in as_questions(task, rows, index)]
        for question in questions:
            _check_question(task, question)
    if len({question.id for question in questions}) < len(questions):
        raise ConfigError(f"Task '{task.name}' gives two questions one id: {[question.id for question in questions]}.")
    answers = [(answer or _reference)(question) for question in questions]
    if task.submission is not None:
        task.submission.write([Answered(question, text) for question, text in zip(questions, answers, strict=True)])
    metric = resolve_metric(task)
    if not isinstance(metric, Metric):
        return []
    return metric.summarize(
        [Scored(question, text, metric.score(text, question)) for question, text in zip(questions, answers, strict=True)]
    )


def _check_question(task: Task, question: Question) -> None:
    facts = (question.answer, list(question.options), dict(question.groups), question.cluster, dict(question.fields))
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Task '{task.name}', question '{question.id}': all but the prompt must be JSON: {error}") from None
    for part in question.prompt:
        if isinstance(part, Image):
            part.load()
        elif isinstance(part, Video):
            part.load(2)


def _reference(question: Question) -> str:
    found: object = question.answer
    return str(found[0]) if isinstance(found, Sequence) and not isinstance(found, str) else str(found)
