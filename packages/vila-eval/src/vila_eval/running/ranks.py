"""The processes of a launcher such as `torchrun`, which know of one another only through the file system.

results/<model>/.rank-<rank>    the name that a rank made up for this run
results/<model>/.launch         the names that rank 0 has read
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vila_eval.errors import ResultsError, WorkerError
from vila_eval.options import Rank
from vila_eval.records.storage import write_whole, writing
from vila_eval.running.job import Job
from vila_eval.running.manifest import Manifest, asks_the_same, check_folder, read_manifest
from vila_eval.running.workers import (
    POLL_S,
    describe_failures,
    failure_file,
    read_failures,
    record_failure,
    remove_failures,
)

LAUNCH = ".launch"


@contextmanager
def meeting(root: Path, folders: Sequence[Path], rank: Rank) -> Generator[None]:
    """Begin together, so that nobody takes what an earlier run left for this one's; leave word of what stops this rank.

    Args:
        root: the model's results.
        folders: of the tasks.
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
        record_failure(root, rank, f"Rank {rank.rank} failed: {error}")
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
                names[path] = path.read_text(encoding="utf-8")
        time.sleep(POLL_S)
    write_whole(root / LAUNCH, "\n".join(names.values()))
    for path in others:
        path.unlink(missing_ok=True)


def _follow(root: Path, rank: Rank) -> None:
    name, own = uuid.uuid4().hex, _rank_file(root, rank.rank)
    launch = root / LAUNCH
    write_whole(own, name)
    while not (launch.exists() and name in launch.read_text(encoding="utf-8").split()):
        time.sleep(POLL_S)
        if not own.exists():  # rank 0 took it for an earlier run's, or has just read it
            write_whole(own, name)
    own.unlink(missing_ok=True)


def _rank_file(root: Path, rank: int) -> Path:
    return root / f".rank-{rank}"


class OtherRanks:
    """The other processes of a launcher, which ends them all if one dies."""

    def __init__(self, root: Path):
        self.root = root

    def check(self) -> bool:
        if failures := read_failures(self.root):
            raise WorkerError(describe_failures(failures))
        return False

    def stop(self) -> None:
        remove_failures(self.root)


def await_folder(job: Job, root: Path, *, force: bool) -> Manifest | None:
    """Wait until rank 0 has made a task's folder ready; return its manifest, None where the task is complete.

    Raises:
        ResultsError: the folder is of something else (`force` has rank 0 empty it), or rank 0 failed.
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
