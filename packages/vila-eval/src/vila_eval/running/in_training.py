"""Scoring a loaded model on a task, without a results folder: what training does between its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError, MediaError, PluginError, VilaError
from vila_eval.data.sources import DataOptions, Rows
from vila_eval.errors import DataError
from vila_eval.metric import Metric, Scored
from vila_eval.records.storage import measure_label
from vila_eval.running.answering import respond_each
from vila_eval.running.job import select_rows, with_frames
from vila_eval.task import Question, Task, as_questions, plugin_errors, resolve_metric

if TYPE_CHECKING:
    from vila_core.runtime import Vila

AT_ONCE = 8
"""Questions that are answered together. Training leaves less memory than a model on its own."""


def open_evaluator(
    task: Task, cache: Path, *, limit: int | None = None, mirror: Path | None = None, offline: bool = False
) -> Callable[[Vila], Mapping[str, float]]:
    """Open a task's data and return a function that scores a model on it: see `Task.evaluator`."""
    metric = resolve_metric(task)
    if not isinstance(metric, Metric):
        reason = "its answers are scored elsewhere" if metric is None else "it needs a judge"
        raise ConfigError(f"Training cannot evaluate on the task '{task.name}': {reason}. Use vila-eval afterwards.")
    with plugin_errors(f"The data of task '{task.name}' cannot be opened"):
        rows = task.source.open(DataOptions(cache, mirror=mirror, offline=offline))
        count = len(rows)
    if not count:
        raise DataError(f"{task.source.description} has no rows.")
    return _Evaluator(task, metric, rows, select_rows(rows, limit, task.keep_together))


@dataclass(frozen=True)
class _Evaluator:
    """Asks the selected rows of a task and scores the answers."""

    task: Task
    metric: Metric
    rows: Rows
    selected: Sequence[int]

    def __call__(self, model: Vila) -> Mapping[str, float]:
        questions = list(self._questions())
        answers = self._answers(model, questions)
        samples = [self._scored(question, answer) for question, answer in zip(questions, answers, strict=True)]
        with plugin_errors(f"Metric '{self.metric.name}' cannot summarize {len(samples)} samples"):
            measures = self.metric.summarize(samples)
        return {measure_label(measure): measure.value for measure in measures if math.isfinite(measure.value)}

    def _answers(self, model: Vila, questions: Sequence[Question]) -> Iterator[str]:
        """Yield the answers in order; "" for a sample that failed (unreadable media)."""
        respond = self.task.respond
        if respond is not None:
            for start in range(0, len(questions), AT_ONCE):
                for answer in respond_each(model, respond, questions[start : start + AT_ONCE]):
                    yield "" if isinstance(answer, MediaError) else answer
            return
        prompts = ([part for part in question.prompt if part is not None] for question in questions)
        for answer in model.complete_each(
            prompts, at_once=AT_ONCE, max_new_tokens=self.task.max_new_tokens, stop=tuple(self.task.stop)
        ):
            yield "" if isinstance(answer, VilaError) else answer.text

    def _questions(self) -> Iterator[Question]:
        frames = self.task.num_video_frames
        for row in self.selected:
            for question in as_questions(self.task, self.rows, row):
                yield question if frames is None else with_frames(question, frames)

    def _scored(self, question: Question, text: str) -> Scored:
        """Return a question with its score."""
        with plugin_errors(f"Metric '{self.metric.name}' cannot score sample '{question.id}'"):
            score = self.metric.score(text, question)
        if not all(map(math.isfinite, score.values.values())):
            raise PluginError(f"Metric '{self.metric.name}' gives sample '{question.id}' a score that is not finite.")
        return Scored(question, text, score)
