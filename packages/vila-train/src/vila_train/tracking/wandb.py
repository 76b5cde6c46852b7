"""Weights & Biases: one run of the project "vila-train", named like the run's folder. WANDB_… settings apply.

If it cannot be reached, the run is logged offline in OUT/wandb, and `wandb sync` sends it later.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from vila_core.errors import warn
from vila_core.plugins.lazy import optional_import
from vila_train.callbacks import NoCallback, RunStart, StepRecord
from vila_train.tracking.scalars import evaluation_scalars, step_scalars

PROJECT = "vila-train"


class WeightsAndBiases(NoCallback):
    """Logs to a run that a resumed training continues."""

    def __init__(self) -> None:
        with optional_import("Logging to Weights & Biases (logging.callbacks)", "vila-train[wandb]"):
            import wandb  # pyright: ignore[reportMissingImports]
        self._wandb: Any = wandb
        self._run: Any = None

    def on_start(self, start: RunStart) -> None:
        place = start.folder.resolve()
        settings: dict[str, Any] = {
            "project": PROJECT,
            "name": place.name,
            "id": hashlib.sha256(str(place).encode()).hexdigest()[:16],
            "resume": "allow",
            "dir": str(place),
            "config": start.config.model_dump(mode="json"),
        }
        try:
            self._run = self._wandb.init(**settings)
        except Exception as error:  # noqa: BLE001 - it has many, for no network, no key, no project
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"Weights & Biases cannot be reached ({reason}). Logging offline: wandb sync {place}/wandb/offline-*")
            self._run = self._wandb.init(**settings, mode="offline")

    def on_step(self, record: StepRecord) -> None:
        self._run.log(step_scalars(record), step=record.step)

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        self._run.log(evaluation_scalars(scores), step=step)

    def on_end(self, step: int, reason: str) -> None:
        if self._run is not None:
            self._run.summary["ended"] = reason
            self._run.finish(exit_code=0 if reason == "finished" else 1)
