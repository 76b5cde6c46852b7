"""Workers: processes that each answer a share of every task and share only the file system.

A worker loads the model, opens the data and appends to its own answer files (`vila_eval.running.answers`). Nothing can
time out: the merging process counts the answers that arrive. A worker that cannot answer its share of a task writes the
reason to `failed-<rank>.txt` in the task's folder and continues with the next task. One that cannot continue at all
writes it in the model's folder, and exits.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vila_core.errors import ConfigError, VilaError
from vila_core.plugins.loader import load_plugin_file, load_plugins
from vila_eval.errors import DataError, describe_exception
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions
from vila_eval.running.answering import LazyModel, answer_share
from vila_eval.running.answers import StoredAnswers
from vila_eval.running.failures import record_failure
from vila_eval.running.job import Job, open_job
from vila_eval.running.manifest import Manifest, asks_the_same
from vila_eval.texts import one_line

if TYPE_CHECKING:
    from vila_eval.task import Task


@dataclass(frozen=True)
class Work:
    """What a worker receives: the run, its rank, and the tasks.

    The tasks are pickled, because plugin files must be loaded before the tasks can be unpickled.
    """

    model: ModelOptions
    options: RunOptions
    root: Path
    rank: Rank
    plugin_files: tuple[str, ...]
    current_folder: str
    tasks: bytes


@dataclass(frozen=True)
class _Sent:
    """A planned task as it is sent to a worker.

    A registered task is sent by name, so its functions need not be picklable.
    """

    planned: Planned | tuple[str, str, int | None]
    manifest: Manifest

    def received(self) -> Planned:
        if isinstance(self.planned, Planned):
            return self.planned
        name, folder, num_video_frames = self.planned
        return Planned(cast("Task", load_plugins().tasks.get(name)), folder, num_video_frames)


def _without_scoring(planned: Planned) -> Planned | tuple[str, str, int | None]:
    """Return a planned task without its metric and submission file, which workers do not need."""
    task = planned.task
    if task.name in load_plugins().tasks and load_plugins().tasks.get(task.name) is task:
        return task.name, planned.folder, planned.num_video_frames
    return replace(planned, task=replace(task, metric=None, submission=None))


def check_sendable(planned: Planned) -> None:
    """Raise `ConfigError` if a task cannot be sent to another process."""
    try:
        pickle.dumps(_without_scoring(planned))
    except Exception as error:  # noqa: BLE001 - pickle raises whatever a task's parts raise
        raise ConfigError(
            f"Task '{planned.task.name}' cannot be sent to a worker: {one_line(str(error), 300)}. Register it with a "
            "plugin, define its functions at the top level of a module (no lambdas, no nested functions), "
            "or run with one worker."
        ) from None


def plan_work(model: ModelOptions, options: RunOptions, root: Path, jobs: Sequence[Job], count: int) -> list[Work]:
    """Return the work for each of `count` workers. All tasks must pass `check_sendable`."""
    sent = [_Sent(_without_scoring(job.planned), job.manifest) for job in jobs]
    # Files given with --plugin register under their own path.
    files = tuple(info.owner.distribution for info in load_plugins().infos if info.owner.version == "file")
    without_key = replace(options, judge=None)
    return [
        Work(model, without_key, root, Rank(rank, count, rank), files, str(Path.cwd()), pickle.dumps(sent))
        for rank in range(count)
    ]


def work(assigned: Work) -> None:
    """Answer one worker's share of all tasks. Failures of single tasks are recorded in files.

    Raises:
        Exception: the worker cannot continue: the model cannot be loaded, or the disk is full. The reason is recorded
            if it can be.
    """
    try:
        os.chdir(assigned.current_folder)
        for file in assigned.plugin_files:
            load_plugin_file(file)
        tasks: list[_Sent] = pickle.loads(assigned.tasks)  # noqa: S301 - our parent's own bytes
        lazy = LazyModel(assigned.model, worker_device(assigned.model, assigned.rank, share_cpu=True))
        for task in tasks:
            answer_task(assigned, task.received(), task.manifest, lazy)
    except Exception as error:
        with suppress(VilaError):  # the disk may be full; local processes also send the reason to their parent
            record_failure(assigned.root, assigned.rank, describe_exception(error))
        raise


def answer_task(assigned: Work, planned: Planned, manifest: Manifest, lazy: LazyModel) -> None:
    """Answer a worker's share of one task, or record why that failed. Raises only errors that concern all tasks."""
    folder = assigned.root / planned.folder
    try:
        job = open_job(planned, folder, assigned.model, manifest.model, assigned.options)
        if not asks_the_same(job.manifest, manifest):
            raise DataError(f"{planned.task.source.description} changed while the run started. Start it again.")
        job = replace(job, manifest=manifest)
        answer_share(
            job,
            StoredAnswers(folder, job.selected),
            lazy,
            assigned.rank,
            assigned.options.batch_size,
            lambda rows: None,
        )
    except Exception as error:
        if error is lazy.error:
            raise
        try:
            record_failure(folder, assigned.rank, describe_exception(error))
        except VilaError:  # nothing can be written, so no task can be answered
            raise error from None


def worker_device(model: ModelOptions, rank: Rank, *, share_cpu: bool = False) -> str:
    """Return the device for a worker's model: the GPU with its local rank, unless the user names a device.

    `share_cpu` divides the CPU's threads among the workers.
    """
    import torch

    if model.device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{rank.local_rank % torch.cuda.device_count()}"
    if share_cpu:
        torch.set_num_threads(max(1, torch.get_num_threads() // rank.world_size))
    return model.device
