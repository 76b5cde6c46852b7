"""A group of running workers, and waiting for their answers, which this process merges."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from vila_eval.errors import ResultsError, WorkerError
from vila_eval.running.answering import is_complete
from vila_eval.running.answers import StoredAnswers
from vila_eval.running.failures import describe_failures, read_failures
from vila_eval.running.job import Job

POLL_S = 0.2
"""Seconds between two checks for new answers."""


class WorkerGroup(Protocol):
    """Running workers: local processes, or tasks of Ray."""

    def check(self) -> bool:
        """Return whether all have ended. Raises `WorkerError` if one has died."""
        ...

    def stop(self) -> None:
        """End those that are still running."""
        ...


def await_answers(job: Job, stored: StoredAnswers, group: WorkerGroup, advance: Callable[[int], None]) -> None:
    """Wait until all answers of a task are there.

    Raises:
        WorkerError: a worker died, or all ended without having answered everything.
        ResultsError: a worker cannot answer its share of the task.
    """
    while True:
        ended = group.check()
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
                f"The workers ended with answers to {len(stored.complete)} of {len(job.selected)} rows "
                f"of '{job.task.name}'."
            )
        time.sleep(POLL_S)
