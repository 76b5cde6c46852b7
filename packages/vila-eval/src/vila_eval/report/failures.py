"""Why samples failed, for tables and pages."""

from __future__ import annotations

from pathlib import Path

from vila_eval.errors import ResultsError
from vila_eval.records.schema import SampleRecord
from vila_eval.records.storage import SAMPLES, read_records


def first_failure(folder: Path) -> str | None:
    """Return why the first failed sample of a finished task failed; None if none did or its file cannot be read."""
    try:
        return next((s.error for s in read_records(SampleRecord, folder / SAMPLES) if s.error is not None), None)
    except ResultsError:
        return None
