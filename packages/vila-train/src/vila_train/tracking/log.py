"""OUT/log.jsonl, one record per step, and OUT/evaluation.jsonl, one per evaluation.

A number that is not finite is null there, and the key `not_finite` of its line says what it was.

A resumed run does the steps after its checkpoint again, so their records are removed first.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from vila_core.new_file import open_log
from vila_core.strict_json import to_strict_json
from vila_train.callbacks import NoCallback, RunStart, StepRecord
from vila_train.step_log import forget_after

LOG, EVALUATION = "log.jsonl", "evaluation.jsonl"


class JsonLog(NoCallback):
    """Appends to both files; each line is there as soon as its step is done."""

    def __init__(self) -> None:
        self._folder = Path()
        self._file: TextIO | None = None

    def on_start(self, start: RunStart) -> None:
        """Open the log. Raises `OutputError`."""
        self._folder = start.folder
        for name in (LOG, EVALUATION):
            forget_after(self._folder / name, start.first_step)
        self._file = open_log(self._folder / LOG)

    def on_step(self, record: StepRecord) -> None:
        if self._file is not None:
            self._file.write(to_strict_json(as_json(record)) + "\n")

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        with open_log(self._folder / EVALUATION) as file:
            file.write(to_strict_json({"step": step, "scores": scores}) + "\n")

    def on_end(self, step: int, reason: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def as_json(record: StepRecord) -> dict[str, Any]:
    """Return the fields of a record."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
