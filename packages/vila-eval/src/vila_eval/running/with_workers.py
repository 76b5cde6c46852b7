"""Running tasks with workers, as local processes or on Ray: this process starts them and merges their answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vila_eval.options import Planned, TaskOutcome
from vila_eval.running.answering import checked_answers, is_complete
from vila_eval.running.answers import StoredAnswers
from vila_eval.running.failures import remove_failures
from vila_eval.running.job import Job
from vila_eval.running.processes import Processes
from vila_eval.running.run import Run
from vila_eval.running.scoring import Finished
from vila_eval.running.timing import Stopwatch
from vila_eval.running.worker_group import WorkerGroup, await_answers
from vila_eval.running.workers import check_sendable, plan_work


def run_with_workers(run: Run, plan: Sequence[Planned]) -> list[TaskOutcome]:
    """Run all tasks with workers.

    Workers do not wait for the merge, so a task's seconds count from the end of the previous task.
    """
    claimed: dict[str, tuple[Job, StoredAnswers]] = {}
    group: WorkerGroup | None = None

    def claim(planned: Planned) -> Finished:
        check_sendable(planned)
        job = run.claim(planned, stack)
        if isinstance(job, Finished):
            return job
        claimed[planned.folder] = job, checked_answers(job)
        return Finished()

    def await_and_score(planned: Planned) -> Finished:
        job, stored = claimed[planned.folder]
        stopwatch, before = Stopwatch(), stored.samples
        with run.showing_progress(job, stored):
            if group is not None:
                await_answers(job, stored, group, run.progress.advance)
        return run.finish(job, stored, stopwatch, stored.samples - before)

    with ExitStack() as stack:
        outcomes = [run.attempt(planned, claim) for planned in plan]
        if unanswered := [job for job, stored in claimed.values() if not is_complete(job, stored)]:
            group = _start(run, unanswered)
            stack.callback(group.stop)
        return [
            run.attempt(planned, await_and_score) if planned.folder in claimed else outcome
            for planned, outcome in zip(plan, outcomes, strict=True)
        ]


def _start(run: Run, jobs: Sequence[Job]) -> WorkerGroup:
    works = plan_work(run.model, run.options, run.root, jobs, run.options.workers)
    for job in jobs:
        remove_failures(job.folder)
    if not run.options.ray:
        return Processes(works)
    from vila_eval.running.ray_workers import RayWorkers

    return RayWorkers(works)
