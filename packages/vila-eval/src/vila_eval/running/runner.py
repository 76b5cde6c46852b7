"""Runs tasks: answers what is not answered yet, scores, and writes the results. What each step does is in the modules it calls.

    evaluate(ModelOptions("Efficient-Large-Model/NVILA-8B"), plan, RunOptions(Path("results"), data), NoProgress())

A run may be stopped at any moment, and the same call goes on from there: the results are the same to the byte.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError, VilaError
from vila_eval.errors import ResultsError, WorkerError
from vila_eval.options import Rank, TaskOutcome
from vila_eval.records.storage import write_metrics, writing
from vila_eval.running.answering import LazyModel, answer_share, checked_answers, is_complete, stored_answers
from vila_eval.running.answers import StoredAnswers, locked, remove_answers
from vila_eval.running.identity import model_identity, model_name
from vila_eval.running.job import Job, open_job
from vila_eval.running.manifest import begin, check_folder
from vila_eval.running.ranks import OtherRanks, await_folder, meeting
from vila_eval.running.scoring import Finished, finish_task, judge_again, score_again
from vila_eval.running.timing import Stopwatch
from vila_eval.running.workers import (
    Crew,
    Processes,
    await_answers,
    plan_work,
    record_failure,
    remove_failures,
    worker_device,
)
from vila_eval.task import Question, as_questions

if TYPE_CHECKING:
    from vila_core.cli.progress import Progress
    from vila_eval.options import ModelOptions, Planned, RunOptions

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
        ConfigError: the results would be written into the model's folder.
        WorkerError: a worker died. Its answers so far are kept.
    """
    several = rank is not None and rank.world_size > 1
    if several and (options.workers > 1 or options.ray):
        raise ConfigError(
            "A launcher started several processes already: leave --workers and --ray out, or the launcher."
        )
    run = _Run(model, options, progress, rank if several else None)
    if options.phase == "score":
        return [run.attempt(planned, run.score_again) for planned in plan] if run.rank.rank == 0 else []
    run.identify()
    if options.workers > 1 or options.ray:
        return run.with_workers(plan)
    if not several:
        return [run.attempt(planned, run.answer_and_score) for planned in plan]
    with meeting(run.root, [run.folder(planned) for planned in plan], run.rank):
        return [run.attempt(planned, run.lead if run.rank.rank == 0 else run.follow) for planned in plan]


class _Run:
    """One call of `evaluate`."""

    def __init__(self, model: ModelOptions, options: RunOptions, progress: Progress, rank: Rank | None):
        self.model, self.options, self.progress, self.rank = model, options, progress, rank or ALONE
        self.root = options.output_dir / model_name(model)
        self.lazy = LazyModel(model, None if rank is None else worker_device(model, rank))

    def identify(self) -> None:
        """Find out who answers: reads the model's files, and downloads them where they are not here."""
        self.identity = model_identity(self.model)
        if self.model.path is not None and Path(self.model.path).expanduser().resolve() == self.root.resolve():
            raise ConfigError(
                f"The results would be written into the model's own folder, '{self.root}'. Give another --output-dir."
            )

    def folder(self, planned: Planned) -> Path:
        return self.root / planned.folder

    def attempt(self, planned: Planned, step: Callable[[Planned], Finished]) -> TaskOutcome:
        """Take one task to its outcome."""
        folder = self.folder(planned)
        try:
            finished = step(planned)
            if finished.result is not None:
                write_metrics(self.root)
        except WorkerError:
            raise
        except VilaError as error:
            if error is self.lazy.error:  # no other task could go on either
                raise
            if self.rank.world_size > 1:
                record_failure(folder, self.rank, str(error))
            return TaskOutcome(planned, folder, error=str(error))
        return TaskOutcome(planned, folder, finished.result, waiting=finished.waiting)

    def score_again(self, planned: Planned) -> Finished:
        """Score stored answers, without the model and the data."""
        return score_again(planned.task, self.folder(planned), self.options, self.progress)

    # ---- in this process

    def answer_and_score(self, planned: Planned) -> Finished:
        """Run one task in this process."""
        with ExitStack() as stack:
            job = self.claim(planned, stack)
            if isinstance(job, Finished):
                return job
            stopwatch, stored = Stopwatch(), stored_answers(job)
            with self.told(job, stored):
                answered = self.answer_share(job, stored)
            return self.finish(job, stored, stopwatch, answered)

    def answer_share(self, job: Job, stored: StoredAnswers) -> int:
        return answer_share(job, stored, self.lazy, self.rank, self.options.batch_size, self.progress.advance)

    # ---- with workers

    def with_workers(self, plan: Sequence[Planned]) -> list[TaskOutcome]:
        """Run all tasks with processes that this one starts; it merges and scores what they answer.

        They do not wait for it, so a task's seconds count from the end of the task before.
        """
        claimed: dict[str, tuple[Job, StoredAnswers]] = {}
        crew: Crew | None = None

        def claim(planned: Planned) -> Finished:
            job = self.claim(planned, stack)
            if isinstance(job, Finished):
                return job
            claimed[planned.folder] = job, checked_answers(job)
            return Finished()

        def await_and_score(planned: Planned) -> Finished:
            job, stored = claimed[planned.folder]
            stopwatch = Stopwatch()
            before = stored.samples
            with self.told(job, stored):
                if crew is not None:
                    await_answers(job, stored, crew, self.progress.advance)
            return self.finish(job, stored, stopwatch, stored.samples - before)

        with ExitStack() as stack:
            outcomes = [self.attempt(planned, claim) for planned in plan]
            if unanswered := [job for job, stored in claimed.values() if not is_complete(job, stored)]:
                crew = self.start_workers(unanswered)
                stack.callback(crew.stop)
            return [
                self.attempt(planned, await_and_score) if planned.folder in claimed else outcome
                for planned, outcome in zip(plan, outcomes, strict=True)
            ]

    def start_workers(self, jobs: Sequence[Job]) -> Crew:
        works = plan_work(self.model, self.options, self.root, jobs, self.options.workers)
        for job in jobs:
            remove_failures(job.folder)
        if not self.options.ray:
            return Processes(works)
        from vila_eval.running.ray_workers import RayWorkers

        return RayWorkers(works)

    # ---- as one of several processes

    def lead(self, planned: Planned) -> Finished:
        """Answer a share of one task, wait for the other ranks' answers, and score."""
        with ExitStack() as stack:
            job = self.claim(planned, stack)
            if isinstance(job, Finished):
                return job
            stopwatch, stored = Stopwatch(), checked_answers(job)
            before = stored.samples
            with self.told(job, stored):
                self.answer_share(job, stored)
                await_answers(job, stored, OtherRanks(self.root), self.progress.advance)
            return self.finish(job, stored, stopwatch, stored.samples - before)

    def follow(self, planned: Planned) -> Finished:
        """Answer a share of one task, once rank 0 has made its folder ready."""
        job = open_job(planned, self.folder(planned), self.model, self.identity, self.options)
        manifest = await_folder(job, self.root, force=self.options.force)
        if manifest is not None:
            job = replace(job, manifest=manifest)
            stored = stored_answers(job)
            # Rank 0 removes the answers when it has merged them: they are read before the result is looked for.
            if check_folder(job.folder, manifest) is None:
                with self.told(job, stored):
                    self.answer_share(job, stored)
        return Finished(waiting="rank 0")

    # ---- everywhere

    @contextmanager
    def told(self, job: Job, stored: StoredAnswers) -> Generator[None]:
        """Tell the progress that a task begins and ends."""
        self.progress.start(job.planned.folder, len(job.selected), len(stored.complete))
        try:
            yield
        finally:
            self.progress.finish()

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
        remove_answers(job.folder, stored_answers(job))  # a crash may have left them
        return judge_again(job.task, result, job.folder, self.options, self.progress) or Finished(result)

    def finish(self, job: Job, stored: StoredAnswers, stopwatch: Stopwatch, answered: int) -> Finished:
        """Merge the answers of a task, all of which are there, and score them."""
        places = stored.places(job.selected)

        def ask(index: int) -> Question:
            row, number = places[index]
            return as_questions(job.task, job.rows, row)[number]

        options = self.options
        stopwatch.write(
            job.folder,
            answered=answered,
            batch_size=options.batch_size,
            workers=max(options.workers, self.rank.world_size),
        )
        samples = stored.merged(job.selected)
        finished = finish_task(job.task, job.manifest, samples, job.folder, options, self.progress, ask)
        if finished.result is not None:
            remove_answers(job.folder, stored)
        return finished
