"""OUT/memory.json: the highest use of memory. On a GPU also OUT/memory-snapshot.pickle, for pytorch.org/memory_viz."""

import json
import sys
from pathlib import Path
from typing import Any

from vila_core.new_file import write_file
from vila_train.callbacks import NoCallback, RunStart, StepRecord

REPORT, SNAPSHOT = "memory.json", "memory-snapshot.pickle"
STEPS = 3
"""Steps that the snapshot covers. Recording costs time and main memory."""


class MemoryReport(NoCallback):
    """Peaks of this process and of its GPU. The snapshot is taken after three steps, or when the run fails earlier."""

    def __init__(self) -> None:
        self._folder = Path()
        self._first = 0
        self._recording = False
        self._gpu_peak: tuple[int, int] | None = None
        """Bytes, and the step in which they were used first."""

    def on_start(self, start: RunStart) -> None:
        from torch import cuda

        self._folder, self._first = start.folder, start.first_step
        if cuda.is_available():
            cuda.memory._record_memory_history(max_entries=200_000)  # pyright: ignore[reportPrivateUsage]
            self._recording = True

    def on_step(self, record: StepRecord) -> None:
        peak = record.memory_bytes
        if peak is not None and (self._gpu_peak is None or peak > self._gpu_peak[0]):
            self._gpu_peak = peak, record.step
        if record.step >= self._first + STEPS:
            self._save_snapshot()

    def on_end(self, step: int, reason: str) -> None:
        self._save_snapshot()
        report: dict[str, Any] = {"process_peak_bytes": process_peak_bytes()}
        if self._gpu_peak is not None:
            report |= {"gpu_peak_bytes": self._gpu_peak[0], "gpu_peak_step": self._gpu_peak[1]}
        write_file(self._folder / REPORT, json.dumps(report, indent=1) + "\n")

    def _save_snapshot(self) -> None:
        if self._recording:
            from torch import cuda

            self._recording = False
            cuda.memory._dump_snapshot(str(self._folder / SNAPSHOT))  # pyright: ignore[reportPrivateUsage]
            cuda.memory._record_memory_history(enabled=None)  # pyright: ignore[reportPrivateUsage]


def process_peak_bytes() -> int | None:
    """Return the most main memory that this process has used; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
