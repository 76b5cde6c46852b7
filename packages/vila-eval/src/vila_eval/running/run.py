"""One call of `evaluate`: who answers, and the steps of a task that every mode of execution shares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vila_core.cli.progress import Progress
from vila_core.errors import ConfigError
from vila_eval.errors import ResultsError, WorkerError, describe_exception
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions, TaskOutcome
from vila_eval.records.schema import ModelIdentity
from vila_eval.records.storage import write_metrics, writing
from vila_eval.running.answering import LazyModel, answer_share, stored_answers, used_dtype
from vila_eval.running.answers import StoredAnswers, locked, remove_answers
from vila_eval.running.failures import record_failure
from vila_eval.running.identity import model_identity
from vila_eval.running.job import Job, open_job
from vila_eval.running.manifest import begin, check_folder
from vila_eval.running.scoring import Finished, finish_task, judge_again
from vila_eval.running.timing import Stopwatch
from vila_eval.task import Question, as_questions

logger = logging.getLogger("vila_eval")

ONLY_PROCESS = Rank(0, 1, 0)


def identify_model(model: ModelOptions, root: Path) -> ModelIdentity:
    """Return the digest of the model's files, downloading them if needed.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: the results folder `root` is the model's own folder.
    """
    identity = model_identity(model)
    if model.path is not None and Path(model.path).expanduser().resolve() == root.resolve():
        raise ConfigError(
            f"The results would be written into the model's own folder, '{root}'. Choose another --output-dir."
        )
    return identity


@dataclass(frozen=True)
class Run:
    """A run of several tasks with one model.

    Attributes:
        root: the model's results folder.
        loader: loads the model on first use.
        rank: this process, if a launcher started several.
    """

    model: ModelOptions
    identity: ModelIdentity
    options: RunOptions
    progress: Progress
    root: Path
    loader: LazyModel
    rank: Rank = ONLY_PROCESS

    def folder(self, planned: Planned) -> Path:
        return self.root / planned.folder

    def attempt(self, planned: Planned, step: Callable[[Planned], Finished]) -> TaskOutcome:
        """Run `step` on one task and return its outcome. Raises only errors that concern all tasks.

        Any other exception, of a plugin or of this package, ends this task alone.
        """
        try:
            return attempt(planned, self.root, step)
        except WorkerError:
            raise
        except Exception as error:
            if error is self.loader.error:  # no other task could be answered either
                raise
            if self.rank.world_size > 1:
                record_failure(self.folder(planned), self.rank, describe_exception(error))
            return failed_outcome(planned, self.folder(planned), error)

    def open(self, planned: Planned) -> Job:
        return open_job(planned, self.folder(planned), self.model, self.identity, self.options)

    def claim(self, planned: Planned, stack: ExitStack) -> Job | Finished:
        """Open a task's data and lock its folder until `stack` closes; or return the result if there is one."""
        job = self.open(planned)
        finished = self._existing_result(job)
        if finished is not None:
            return finished
        stack.enter_context(locked(job.folder))
        submission = None if planned.task.submission is None else planned.task.submission.filename
        with writing(job.folder):
            manifest = begin(job.folder, job.manifest, force=self.options.force, submission=submission)
        result = check_folder(job.folder, manifest)  # another run may have ended in between
        return replace(job, manifest=manifest) if result is None else Finished(result)

    def _existing_result(self, job: Job) -> Finished | None:
        """Return the result of a task that is already complete; None if it is not, or if `force` replaces it."""
        try:
            result = check_folder(job.folder, job.manifest)
        except ResultsError:
            if self.options.force:
                return None
            raise
        if result is None:
            return None
        remove_answers(job.folder, stored_answers(job))  # a crash may have left them
        return judge_again(job.task, result, job.folder, self.options, self.progress) or Finished(
            result, was_complete=True
        )

    @contextmanager
    def showing_progress(self, job: Job, stored: StoredAnswers) -> Generator[None]:
        """Report the start and the end of a task to the progress."""
        self.progress.start(job.planned.folder, len(job.selected), len(stored.complete))
        try:
            yield
        finally:
            self.progress.finish()

    def answer_share(self, job: Job, stored: StoredAnswers) -> int:
        """Answer this process's share of a task; return the number of samples answered."""
        return answer_share(job, stored, self.loader, self.rank, self.options.batch_size, self.progress.advance)

    def finish(self, job: Job, stored: StoredAnswers, stopwatch: Stopwatch, answered: int) -> Finished:
        """Merge a task's answers, which must be complete, and score them."""
        places = stored.places(job.selected)

        def ask(index: int) -> Question:
            row, number = places[index]
            return as_questions(job.task, job.rows, row)[number]

        stopwatch.write(
            job.folder,
            answered=answered,
            batch_size=self.options.batch_size,
            workers=max(self.options.workers, self.rank.world_size),
            dtype=used_dtype(self.model) if answered else "",
        )
        samples = stored.merged(job.selected)
        finished = finish_task(job.task, job.manifest, samples, job.folder, self.options, self.progress, ask)
        if finished.result is not None:
            remove_answers(job.folder, stored)
        return finished


def failed_outcome(planned: Planned, folder: Path, error: Exception) -> TaskOutcome:
    """Return the outcome of a task that ended in an exception. The traceback goes to the log, for `--debug`."""
    logger.debug("Task '%s' failed", planned.folder, exc_info=error)
    return TaskOutcome(planned, folder, error=describe_exception(error))


def attempt(planned: Planned, root: Path, step: Callable[[Planned], Finished]) -> TaskOutcome:
    """Run `step` on one task; write `metrics.json` if that gives a result."""
    finished = step(planned)
    if finished.result is not None:
        write_metrics(root)
    return TaskOutcome(
        planned, root / planned.folder, finished.result, waiting=finished.waiting, was_complete=finished.was_complete
    )
