"""TensorBoard: events in OUT/tensorboard. Look at them with `tensorboard --logdir OUT/tensorboard`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vila_core.plugins.lazy import optional_import
from vila_train.callbacks import NoCallback, RunStart, StepRecord
from vila_train.settings import write_config
from vila_train.tracking.scalars import evaluation_scalars, step_scalars

FOLDER = "tensorboard"


class TensorBoard(NoCallback):
    """Writes events. Those of steps that a resumed run does again are hidden by TensorBoard."""

    def __init__(self) -> None:
        with optional_import("Logging to TensorBoard (logging.callbacks)", "tensorboard"):
            import tensorboard  # noqa: F401  # pyright: ignore[reportUnusedImport]
            from torch.utils.tensorboard.writer import SummaryWriter
        self._open = SummaryWriter
        self._writer: Any = None

    def on_start(self, start: RunStart) -> None:
        folder = start.folder / FOLDER
        purge = start.first_step + 1 if start.first_step else None
        self._writer = self._open(str(folder), purge_step=purge)
        self._writer.add_text("config", f"```yaml\n{write_config(start.config)}\n```", start.first_step)

    def on_step(self, record: StepRecord) -> None:
        self._write(record.step, step_scalars(record))

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        self._write(step, evaluation_scalars(scores))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self._writer.flush()

    def on_end(self, step: int, reason: str) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
