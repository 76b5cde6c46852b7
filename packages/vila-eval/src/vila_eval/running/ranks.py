"""Running tasks as the ranks of a launcher such as `torchrun`. Ranks communicate only through the file system.

results/<model>/.rank-<rank>    a random name that a rank chose for this run
results/<model>/.launch         the names that rank 0 has read
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from vila_eval.errors import ResultsError, WorkerError, describe_exception
from vila_eval.options import Planned, Rank, TaskOutcome
from vila_eval.records.storage import read_text, write_whole, writing
from vila_eval.running.answering import checked_answers, stored_answers
from vila_eval.running.failures import describe_failures, failure_file, read_failures, record_failure, remove_failures
from vila_eval.running.job import Job
from vila_eval.running.manifest import Manifest, asks_the_same, check_folder, read_manifest
from vila_eval.running.run import Run
from vila_eval.running.scoring import Finished
from vila_eval.running.timing import Stopwatch
from vila_eval.running.worker_group import POLL_S, await_answers

LAUNCH = ".launch"


def run_as_rank(run: Run, plan: Sequence[Planned]) -> list[TaskOutcome]:
    """Run all tasks as one of several ranks: each answers a share, and rank 0 merges and scores."""

    def lead(planned: Planned) -> Finished:
        with ExitStack() as stack:
            job = run.claim(planned, stack)
            if isinstance(job, Finished):
                return job
            stopwatch, stored = Stopwatch(), checked_answers(job)
            before = stored.samples
            with run.showing_progress(job, stored):
                run.answer_share(job, stored)
                await_answers(job, stored, OtherRanks(run.root), run.progress.advance)
            return run.finish(job, stored, stopwatch, stored.samples - before)

    def follow(planned: Planned) -> Finished:
        job = run.open(planned)
        manifest = await_folder(job, run.root, force=run.options.force)
        if manifest is not None:
            job = replace(job, manifest=manifest)
            stored = stored_answers(job)
            # Rank 0 removes the answers once they are merged, so read them before looking for the result.
            if check_folder(job.folder, manifest) is None:
                with run.showing_progress(job, stored):
                    run.answer_share(job, stored)
        return Finished(waiting="rank 0")

    with meeting(run.root, [run.folder(planned) for planned in plan], run.rank):
        return [run.attempt(planned, lead if run.rank.rank == 0 else follow) for planned in plan]


@contextmanager
def meeting(root: Path, folders: Sequence[Path], rank: Rank) -> Generator[None]:
    """Wait for all ranks to start, so that no rank mistakes an earlier run's files for this run's.

    An exception inside the block is recorded for the other ranks.

    Args:
        root: the model's results folder.
        folders: the tasks' folders.
        rank: this process.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if rank.rank == 0:
            _lead(root, folders, rank)
        else:
            _follow(root, rank)
    try:
        yield
    except Exception as error:
        record_failure(root, rank, f"Rank {rank.rank} failed: {describe_exception(error)}")
        raise


def _lead(root: Path, folders: Sequence[Path], rank: Rank) -> None:
    others = [_rank_file(root, number) for number in range(1, rank.world_size)]
    for path in others:
        path.unlink(missing_ok=True)
    for folder in (root, *folders):
        remove_failures(folder)
    names: dict[Path, str] = {}
    while len(names) < len(others):
        for path in others:
            if path not in names and path.exists():
                names[path] = read_text(path) or ""
        time.sleep(POLL_S)
    write_whole(root / LAUNCH, "\n".join(names.values()))
    for path in others:
        path.unlink(missing_ok=True)


def _follow(root: Path, rank: Rank) -> None:
    name, own = uuid.uuid4().hex, _rank_file(root, rank.rank)
    launch = root / LAUNCH
    write_whole(own, name)
    while name not in (read_text(launch) or "").split():
        time.sleep(POLL_S)
        if not own.exists():  # rank 0 removed it as an earlier run's, or has just read it
            write_whole(own, name)
    own.unlink(missing_ok=True)


def _rank_file(root: Path, rank: int) -> Path:
    return root / f".rank-{rank}"


class OtherRanks:
    """The launcher's other processes. The launcher ends all of them if one dies."""

    def __init__(self, root: Path):
        self.root = root

    def check(self) -> bool:
        if failures := read_failures(self.root):
            raise WorkerError(describe_failures(failures))
        return False

    def stop(self) -> None:
        remove_failures(self.root)


def await_folder(job: Job, root: Path, *, force: bool) -> Manifest | None:
    """Wait until rank 0 has prepared a task's folder; return its manifest, or None if the task is complete.

    Raises:
        ResultsError: the folder holds results of something else (with `force`, rank 0 clears it), or rank 0 failed.
    """
    leader = failure_file(0)
    while True:
        try:
            if check_folder(job.folder, job.manifest) is not None:
                return None
            if (manifest := read_manifest(job.folder)) is not None and asks_the_same(manifest, job.manifest):
                return manifest
        except ResultsError:
            if not force:
                raise
        if reason := read_failures(job.folder).get(leader, read_failures(root).get(leader)):
            raise ResultsError(reason)
        time.sleep(POLL_S)
