"""Workers: processes that answer a share of every task each, with nothing in common but the file system.

Each loads the model and opens the data for itself and appends to files of its own (`vila_eval.running.answers`), so that there is nothing
to time out: whoever merges counts what has arrived. A worker that cannot answer its share of a task leaves the reason in
`failed-<rank>.txt` of the task's folder and goes on to the next task; one that cannot go on leaves it in the model's folder, and dies.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vila_core.errors import ConfigError, VilaError
from vila_core.plugins.loader import load_plugin_file, load_plugins
from vila_eval.errors import DataError, ResultsError, WorkerError
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions
from vila_eval.records.storage import FAILURES, write_whole
from vila_eval.running.answering import LazyModel, answer_share, is_complete
from vila_eval.running.answers import StoredAnswers
from vila_eval.running.job import Job, open_job
from vila_eval.running.manifest import Manifest, asks_the_same

if TYPE_CHECKING:
    from vila_eval.task import Task

POLL_S = 0.2
"""Seconds between two looks at what has arrived."""


@dataclass(frozen=True)
class Work:
    """What a worker is sent: the run, its place in it, and the tasks (pickled: plugin files must be loaded before they are read)."""

    model: ModelOptions
    options: RunOptions
    root: Path
    rank: Rank
    plugin_files: tuple[str, ...]
    current_folder: str
    tasks: bytes


@dataclass(frozen=True)
class _Sent:
    """A planned task as it is sent. A registered one is sent by its name, and looked up by the worker: its functions may be any."""

    planned: Planned | tuple[str, str, int | None]
    manifest: Manifest

    def received(self) -> Planned:
        if isinstance(self.planned, Planned):
            return self.planned
        name, folder, num_video_frames = self.planned
        return Planned(cast("Task", load_plugins().tasks.get(name)), folder, num_video_frames)


def _without_scoring(planned: Planned) -> Planned | tuple[str, str, int | None]:
    """Return what a worker needs of a planned task: nothing of how it is scored."""
    task = planned.task
    if task.name in load_plugins().tasks and load_plugins().tasks.get(task.name) is task:
        return task.name, planned.folder, planned.num_video_frames
    return replace(planned, task=replace(task, metric=None, submission=None))


def plan_work(model: ModelOptions, options: RunOptions, root: Path, jobs: Sequence[Job], count: int) -> list[Work]:
    """Return the work of each of `count` workers.

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
                "let its functions be those of a module (no lambda, nothing defined in a function), or run with one worker."
            ) from None
    # Files given with --plugin register under their own path.
    files = tuple(info.owner.distribution for info in load_plugins().infos if info.owner.version == "file")
    without_key = replace(options, judge=None)
    return [
        Work(model, without_key, root, Rank(rank, count, rank), files, str(Path.cwd()), pickle.dumps(sent))
        for rank in range(count)
    ]


# ------------------------------------------------------------------------------------------------ in a worker


def work(assigned: Work) -> None:
    """Answer one worker's share of all tasks. Reasons of failures are left in files.

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
    """Answer a worker's share of one task, or leave the reason why not. Raises only what concerns all tasks."""
    folder = assigned.root / planned.folder
    try:
        job = open_job(planned, folder, assigned.model, manifest.model, assigned.options)
        if not asks_the_same(job.manifest, manifest):
            raise DataError(f"{planned.task.source.description} changed while the run began. Start it again.")
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
    """Return where a worker loads its model: a GPU by its number on its machine, unless the user names a device.

    `share_cpu` divides the threads of a CPU among the workers.
    """
    import torch

    if model.device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{rank.local_rank % torch.cuda.device_count()}"
    if share_cpu:
        torch.set_num_threads(max(1, torch.get_num_threads() // rank.world_size))
    return model.device


def failure_file(rank: int) -> str:
    """Return the name of the file in which a worker says why it failed."""
    return FAILURES.replace("*", str(rank))


def record_failure(folder: Path, rank: Rank, reason: str) -> None:
    """Leave the reason why a worker could not answer its share."""
    write_whole(folder / failure_file(rank.rank), reason)


def read_failures(folder: Path) -> dict[str, str]:
    """Return the reasons that workers left in a folder, by the file's name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob(FAILURES))}


def remove_failures(folder: Path) -> None:
    """Forget the failures of an earlier run."""
    for path in folder.glob(FAILURES):
        path.unlink(missing_ok=True)


def _run_process(assigned: Work) -> None:
    """A child process. It ends when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def follow_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)  # the model may be computing: nothing softer ends it soon

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        work(assigned)
    except VilaError:
        sys.exit(2)  # the reason is in the file


# ------------------------------------------------------------------------------------------------ outside


@contextmanager
def _deaf_to_ctrl_c() -> Generator[None]:
    """Have the processes that are started here ignore Ctrl-C, which the terminal sends them too: this one ends them."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Crew(Protocol):
    """Workers at work."""

    def check(self) -> bool:
        """Return whether all have ended. Raises `WorkerError` if one has died."""
        ...

    def stop(self) -> None:
        """End those that still run."""
        ...


class Processes:
    """Workers on this machine, one a process."""

    def __init__(self, works: Sequence[Work]):
        self.root = works[0].root
        remove_failures(self.root)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._processes = [
            context.Process(target=_run_process, args=(one,), name=f"vila-eval worker {one.rank.rank}") for one in works
        ]
        with _deaf_to_ctrl_c():
            for process in self._processes:
                process.start()

    @property
    def pids(self) -> list[int | None]:
        return [process.pid for process in self._processes]

    def check(self) -> bool:
        for rank, process in enumerate(self._processes):
            if process.exitcode:
                reason = read_failures(self.root).get(
                    failure_file(rank), "It left no reason: was it killed, or out of memory?"
                )
                raise WorkerError(f"Worker {rank} ended with exit code {process.exitcode}. {reason}")
        return all(process.exitcode == 0 for process in self._processes)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        remove_failures(self.root)


def describe_failures(failures: Mapping[str, str]) -> str:
    """Return the reasons in one text, equal ones once."""
    return " ".join(dict.fromkeys(failures.values()))


def await_answers(job: Job, stored: StoredAnswers, crew: Crew, advance: Callable[[int], None]) -> None:
    """Wait until all answers of a task are there.

    Raises:
        WorkerError: a worker died, or all ended without having answered everything.
        ResultsError: a worker cannot answer its share of the task.
    """
    while True:
        ended = crew.check()
        before = len(stored.complete)
        stored.update()
        if arrived := len(stored.complete) - before:
            advance(arrived)
        if is_complete(job, stored):
            return
        if failures := read_failures(job.folder):
            raise ResultsError(describe_failures(failures))
        if ended:
            raise WorkerError(
                f"The workers ended with answers to {len(stored.complete)} of {len(job.selected)} rows of '{job.task.name}'."
            )
        time.sleep(POLL_S)
