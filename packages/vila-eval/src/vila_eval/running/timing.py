"""The duration of a run: `timings.json`. It is separate because results do not depend on how they were computed."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vila_eval.records.schema import Timings
from vila_eval.records.storage import TIMINGS, write_record, writing

PACKAGES = ("vila-core", "vila-eval", "torch", "transformers")


class Stopwatch:
    """Measures time from its creation."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self._begun = time.monotonic()

    def write(self, folder: Path, *, answered: int, batch_size: int, workers: int, dtype: str) -> None:
        """Write a task's timings, unless this run answered nothing and an earlier run's timings exist."""
        path = folder / TIMINGS
        if not answered and path.exists():
            return
        timings = Timings(
            started=self.started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            answered=answered,
            seconds=round(time.monotonic() - self._begun, 3),
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            versions=_versions(),
        )
        with writing(path):
            write_record(path, timings)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found
