"""Runs tasks: answers what is not answered yet, scores, and writes the results. What each step does is in the modules it calls.

    evaluate(ModelOptions("Efficient-Large-Model/NVILA-8B"), plan, RunOptions(Path("results"), data), Silence())

A run may be stopped at any moment, and the same call goes on from there: the results are the same to the byte.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import VilaError
from vila_eval.answering import LazyModel, answer_share
from vila_eval.answers import StoredAnswers, locked, writing
from vila_eval.errors import ResultsError, WorkerError
from vila_eval.identity import model_identity, model_name
from vila_eval.job import Job, open_job
from vila_eval.manifest import begin, check_folder, remove_answers
from vila_eval.options import Rank, TaskOutcome
from vila_eval.records import METRICS, TaskResult, find_results, merged_metrics, read_result, write_whole
from vila_eval.scoring import Finished, finish_task, judge_again, score_again
from vila_eval.task import Question, as_questions
from vila_eval.timing import Stopwatch

if TYPE_CHECKING:
    from vila_eval.options import ModelOptions, Planned, Progress, RunOptions

logger = logging.getLogger("vila_eval")

ALONE = Rank(0, 1, 0)


def evaluate(
    model: ModelOptions, plan: Sequence[Planned], options: RunOptions, progress: Progress, rank: Rank | None = None
) -> list[TaskOutcome]:
    """Run the planned tasks and return what became of each, in their order. A task that fails does not stop the others.

    A task that is complete is not run again, and the model is loaded only if an answer is missing.

    Args:
        model: answers.
        plan: tasks, each with a results folder of its own.
        options: of the run.
        progress: is told how far each task is, in rows of its data.
        rank: which of several processes this is, where a launcher such as `torchrun` started them on one file system. Each answers
            its share; rank 0 waits for the others and scores. They return outcomes that wait for it.

    Raises:
        CheckpointError: the model is missing or cannot be loaded.
        WorkerError: a worker died. Its answers so far are kept.
    """
    run = _Run(model, options, progress)
    if options.phase == "score":
        return [run.attempt(planned, lambda planned=planned: run.score_again(planned)) for planned in plan]
    run.identify()
    return [run.attempt(planned, lambda planned=planned: run.answer_and_score(planned)) for planned in plan]


class _Run:
    """One call of `evaluate`."""

    def __init__(self, model: ModelOptions, options: RunOptions, progress: Progress):
        self.model, self.options, self.progress = model, options, progress
        self.root = options.output_dir / model_name(model)
        self.lazy = LazyModel(model)

    def identify(self) -> None:
        """Find out who answers: reads the model's files, and downloads them where they are not here."""
        self.identity = model_identity(self.model)

    def folder(self, planned: Planned) -> Path:
        return self.root / planned.folder

    def attempt(self, planned: Planned, step: Callable[[], Finished]) -> TaskOutcome:
        """Take one task to its outcome."""
        folder = self.folder(planned)
        try:
            finished = step()
            if finished.result is not None:
                write_metrics(self.root)
        except WorkerError:
            raise
        except VilaError as error:
            if error is self.lazy.error:  # no other task could go on either
                raise
            return TaskOutcome(planned, folder, error=str(error))
        return TaskOutcome(planned, folder, finished.result, waiting=finished.waiting)

    def score_again(self, planned: Planned) -> Finished:
        """Score stored answers, without the model and the data."""
        return score_again(planned.task, self.folder(planned), self.options, self.progress)

    def answer_and_score(self, planned: Planned) -> Finished:
        """Run one task in this process."""
        with ExitStack() as stack:
            job = self.claim(planned, stack)
            if isinstance(job, Finished):
                return job
            stopwatch, stored = Stopwatch(), StoredAnswers(job.folder)
            stored.update()
            self.progress.start(planned.folder, len(job.selected), len(stored.complete))
            try:
                answered = answer_share(job, stored, self.lazy, ALONE, self.options.batch_size, self.progress.advance)
            finally:
                self.progress.finish()
            return self.finish(job, stored, stopwatch, answered)

    def claim(self, planned: Planned, stack: ExitStack) -> Job | Finished:
        """Open a task's data and its folder, which stays locked as long as `stack`; or return the result that is there."""
        folder = self.folder(planned)
        job = open_job(planned, folder, self.model, self.identity, self.options)
        finished = self.complete(job)
        if finished is not None:
            return finished
        stack.enter_context(locked(folder))
        submission = None if planned.task.submission is None else planned.task.submission.filename
        with writing(folder):
            manifest = begin(folder, job.manifest, force=self.options.force, submission=submission)
        result = check_folder(folder, manifest)  # another run may have ended in between
        return replace(job, manifest=manifest) if result is None else Finished(result)

    def complete(self, job: Job) -> Finished | None:
        """Return the result of a complete task; None where there is none, or one of something else that `force` replaces."""
        try:
            result = check_folder(job.folder, job.manifest)
        except ResultsError:
            if self.options.force:
                return None
            raise
        if result is None:
            return None
        remove_answers(job.folder)  # a crash may have left them
        return judge_again(job.task, result, job.folder, self.options, self.progress) or Finished(result)

    def finish(self, job: Job, stored: StoredAnswers, stopwatch: Stopwatch, answered: int) -> Finished:
        """Merge the answers of a task, all of which are there, and score them."""
        places = stored.places(job.selected)

        def ask(index: int) -> Question:
            row, number = places[index]
            return as_questions(job.task, job.rows, row)[number]

        options = self.options
        stopwatch.write(job.folder, answered=answered, batch_size=options.batch_size, workers=options.workers)
        samples = stored.merged(job.selected)
        finished = finish_task(job.task, job.manifest, samples, job.folder, options, self.progress, ask)
        if finished.result is not None:
            remove_answers(job.folder)
        return finished


def write_metrics(root: Path) -> None:
    """Write a model's `metrics.json`: the measures of all tasks that have a result."""
    results: dict[str, TaskResult] = {}
    for name, folder in find_results(root).items():
        try:
            results[name] = read_result(folder)
        except ResultsError as error:
            logger.warning("Left out of %s: %s", METRICS, error)
    with writing(root / METRICS):
        write_whole(root / METRICS, json.dumps(merged_metrics(results), ensure_ascii=False, allow_nan=False, indent=2) + "\n")
