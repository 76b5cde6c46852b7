"""Evaluation: answer what has no answer yet, score, and write the results.

    evaluate(ModelOptions("Efficient-Large-Model/NVILA-8B"), plan, RunOptions(Path("results"), data), NoProgress())

A run may be stopped at any time. The same call resumes it, and the results are the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError
from vila_eval.options import Rank, TaskOutcome
from vila_eval.running.answering import LazyModel, stored_answers
from vila_eval.running.identity import check_task_folder, model_name
from vila_eval.running.ranks import run_as_rank
from vila_eval.running.run import ONLY_PROCESS, Run, attempt, failed_outcome, identify_model
from vila_eval.running.scoring import Finished, score_again
from vila_eval.running.timing import Stopwatch
from vila_eval.running.with_workers import run_with_workers
from vila_eval.running.workers import worker_device

if TYPE_CHECKING:
    from vila_core.cli.progress import Progress
    from vila_eval.options import ModelOptions, Planned, RunOptions


def evaluate(
    model: ModelOptions, plan: Sequence[Planned], options: RunOptions, progress: Progress, rank: Rank | None = None
) -> list[TaskOutcome]:
    """Run the planned tasks and return their outcomes in order. A task that fails does not stop the others.

    A complete task is not run again, and the model is loaded only if an answer is missing.

    Args:
        model: the model that answers.
        plan: tasks, each with its own results folder.
        options: of the run.
        progress: receives the progress of each task, in rows of its data.
        rank: this process, if a launcher such as `torchrun` started several on one file system. Each answers its
            share; rank 0 waits for the others and scores. The others return outcomes that wait for rank 0.

    Raises:
        CheckpointError: the model is missing or cannot be loaded.
        ConfigError: the results would be written into the model's folder.
        WorkerError: a worker died. Its answers so far are kept.
    """
    rank = ONLY_PROCESS if rank is None else rank
    several = rank.world_size > 1
    if several and (options.workers > 1 or options.ray):
        raise ConfigError(
            "A launcher started several processes already: leave out either --workers and --ray, or the launcher."
        )
    root = options.output_dir / model_name(model)
    if options.phase == "score":
        return [] if several and rank.rank > 0 else _score_stored(plan, options, progress, root)
    loader = LazyModel(model, worker_device(model, rank) if several else None)
    identity = identify_model(model, root)
    run = Run(model, identity, options, progress, root, loader, rank)
    if options.workers > 1 or options.ray:
        return run_with_workers(run, plan)
    return run_as_rank(run, plan) if several else _run_in_process(run, plan)


def _score_stored(plan: Sequence[Planned], options: RunOptions, progress: Progress, root: Path) -> list[TaskOutcome]:
    """Score stored answers, without the model and the data."""

    def score(planned: Planned) -> Finished:
        check_task_folder(planned)
        return score_again(planned.task, root / planned.folder, options, progress)

    outcomes: list[TaskOutcome] = []
    for planned in plan:
        try:
            outcomes.append(attempt(planned, root, score))
        except Exception as error:  # noqa: BLE001 - one task's fault does not stop the others
            outcomes.append(failed_outcome(planned, root / planned.folder, error))
    return outcomes


def _run_in_process(run: Run, plan: Sequence[Planned]) -> list[TaskOutcome]:
    """Answer and score task by task in this process."""

    def answer_and_score(planned: Planned) -> Finished:
        with ExitStack() as stack:
            job = run.claim(planned, stack)
            if isinstance(job, Finished):
                return job
            stopwatch, stored = Stopwatch(), stored_answers(job)
            with run.showing_progress(job, stored):
                answered = run.answer_share(job, stored)
            return run.finish(job, stored, stopwatch, answered)

    return [run.attempt(planned, answer_and_score) for planned in plan]
