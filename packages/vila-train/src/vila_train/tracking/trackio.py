"""Trackio: a tracker that keeps its runs on this machine. Look at them with `trackio show --project vila-train`."""

from collections.abc import Mapping
from typing import Any

from vila_core.plugins.lazy import optional_import
from vila_train.callbacks import NoCallback, RunStart, StepRecord
from vila_train.tracking.scalars import evaluation_scalars, step_scalars

PROJECT = "vila-train"


class Trackio(NoCallback):
    """Logs to the project "vila-train", in a run that is named like the run's folder."""

    def __init__(self) -> None:
        with optional_import("Logging to Trackio (logging.callbacks)", "vila-train[trackio]"):
            import trackio  # pyright: ignore[reportMissingImports]
        self._trackio: Any = trackio
        self._running = False

    def on_start(self, start: RunStart) -> None:
        config = start.config.model_dump(mode="json")
        self._trackio.init(project=PROJECT, name=start.folder.resolve().name, config=config, resume="allow")
        self._running = True

    def on_step(self, record: StepRecord) -> None:
        self._trackio.log(step_scalars(record), step=record.step)

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        self._trackio.log(evaluation_scalars(scores), step=step)

    def on_end(self, step: int, reason: str) -> None:
        if self._running:
            self._trackio.finish()
