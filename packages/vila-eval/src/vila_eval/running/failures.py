"""Failure files: the reason why a worker failed, in `failed-<rank>.txt` of a task's or the model's results folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vila_eval.options import Rank
from vila_eval.records.storage import FAILURES, read_text, write_whole, writing


def failure_file(rank: int) -> str:
    """Return the name of the file that holds a worker's reason for failing."""
    return FAILURES.replace("*", str(rank))


def record_failure(folder: Path, rank: Rank, reason: str) -> None:
    """Write the reason why a worker failed. Raises `OutputError`."""
    write_whole(folder / failure_file(rank.rank), reason)


def read_failures(folder: Path) -> dict[str, str]:
    """Return the reasons in a folder by file name."""
    return {path.name: read_text(path) or "" for path in sorted(folder.glob(FAILURES))}


def remove_failures(folder: Path) -> None:
    """Remove the failure files of an earlier run."""
    with writing(folder):
        for path in folder.glob(FAILURES):
            path.unlink(missing_ok=True)


def describe_failures(failures: Mapping[str, str]) -> str:
    """Return the reasons as one text, without duplicates."""
    return " ".join(dict.fromkeys(failures.values()))
