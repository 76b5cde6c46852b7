"""Workers: processes that each answer a share of every task and share only the file system.

A worker loads the model, opens the data and appends to its own answer files (`vila_eval.running.answers`). Nothing can
time out: the merging process counts the answers that arrive. A worker that cannot answer its share of a task writes the
reason to `failed-<rank>.txt` in the task's folder and continues with the next task. One that cannot continue at all
writes it in the model's folder, and exits.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vila_core.errors import ConfigError, VilaError
from vila_core.plugins.loader import load_plugin_file, load_plugins
from vila_eval.errors import DataError
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions
from vila_eval.running.answering import LazyModel, answer_share
from vila_eval.running.answers import StoredAnswers
from vila_eval.running.failures import record_failure
from vila_eval.running.job import Job, open_job
from vila_eval.running.manifest import Manifest, asks_the_same

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


def plan_work(model: ModelOptions, options: RunOptions, root: Path, jobs: Sequence[Job], count: int) -> list[Work]:
    """Return the work for each of `count` workers.

    Raises:
        ConfigError: a task cannot be sent to another process.
    """
    sent = [_Sent(_without_scoring(job.planned), job.manifest) for job in jobs]
    for one in sent:
        try:
            pickle.dumps(one)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"Task '{one.manifest.task}' cannot be sent to a worker: {error}. Register it with a plugin, "
                "define its functions at the top level of a module (no lambdas, no nested functions), "
                "or run with one worker."
            ) from None
    # Files given with --plugin register under their own path.
    files = tuple(info.owner.distribution for info in load_plugins().infos if info.owner.version == "file")
    without_key = replace(options, judge=None)
    return [
        Work(model, without_key, root, Rank(rank, count, rank), files, str(Path.cwd()), pickle.dumps(sent))
        for rank in range(count)
    ]


def work(assigned: Work) -> None:
    """Answer one worker's share of all tasks. Failures are recorded in files.

    Raises:
        VilaError: the model cannot be loaded.
    """
    try:
        os.chdir(assigned.current_folder)
        for file in assigned.plugin_files:
            load_plugin_file(file)
        tasks: list[_Sent] = pickle.loads(assigned.tasks)  # noqa: S301 - our parent's own bytes
        lazy = LazyModel(assigned.model, worker_device(assigned.model, assigned.rank, share_cpu=True))
        for task in tasks:
            answer_task(assigned, task.received(), task.manifest, lazy)
    except VilaError as error:
        record_failure(assigned.root, assigned.rank, str(error))
        raise
    except Exception:
        record_failure(assigned.root, assigned.rank, traceback.format_exc())
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
    except VilaError as error:
        if error is lazy.error:
            raise
        record_failure(folder, assigned.rank, str(error))


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
