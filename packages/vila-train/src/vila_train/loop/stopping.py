"""Ends of a run that are not its last step: signals, a loss that is not finite, and too little memory."""

import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

from vila_core.device_memory import is_out_of_memory
from vila_core.errors import listed
from vila_train.config import TrainConfig
from vila_train.errors import TrainingError
from vila_train.estimates.memory import RowLoad, estimate_memory, suggest
from vila_train.loop.loader import LoadedRow
from vila_train.loop.setup import adapt
from vila_train.loop.step import StepResult
from vila_train.models import open_model
from vila_train.parallel.world import World
from vila_train.run_folder import RunFolder

RESUMES = "With other settings, the same command resumes with --accept-changes."
PATIENCE = 2.0
"""Seconds after Ctrl-C from which another one stops at once. Launchers repeat the first to all processes."""


class StopRequest:
    """Whether the run was asked to stop. On Ctrl-C or SIGTERM it ends after the current step."""

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.requested and number == signal.SIGINT and time.monotonic() - self._since > PATIENCE:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, time.monotonic()


@contextmanager
def stop_request() -> Generator[StopRequest]:
    """Take Ctrl-C and SIGTERM as requests to stop, within the block."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail_step(step: int, result: StepResult, rows: Sequence[LoadedRow], folder: RunFolder, world: World) -> None:
    """Save the batch of a step whose loss or gradient is not finite, and raise `TrainingError`. On all ranks."""
    finite = result.row_losses.isfinite().tolist()
    losses = result.row_losses.tolist()
    saved = folder.save_failed_step(
        step,
        world.rank,
        [
            {"names": row.row.names, "loss": str(loss), "lengths": row.row.lengths, **_tokens(row)}
            for row, loss in zip(rows, losses, strict=True)
        ],
    )
    own = [name for row, is_finite in zip(rows, finite, strict=True) if not is_finite for name in row.row.names]
    suspects = [name for names in world.gather(own) for name in names]
    where = (
        f"in the row of {listed(suspects, 8)}" if suspects else "in the gradients, though every row's loss is finite"
    )
    raise TrainingError(
        f"Step {step}: the loss ({result.loss.item()}) or the gradient norm ({result.gradient_norm.item()}) is not "
        f"finite, {where}. The batch is in {saved}. Look at these samples, lower "
        f"optimizer.learning_rate, or limit the gradients with optimizer.clip_norm. {RESUMES}"
    )


def _tokens(row: LoadedRow) -> dict[str, list[int]]:
    ids, labels, *_ = row.row.integers.split(list(row.row.sizes))
    return {"ids": ids.tolist(), "labels": labels.tolist()}


@contextmanager
def explain_memory(config: TrainConfig, rows: Sequence[LoadedRow], world: World) -> Generator[None]:
    """Raise `TrainingError` with advice if the block, which computes `rows`, runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _too_little_memory(config, rows, world) from error


def _too_little_memory(config: TrainConfig, rows: Sequence[LoadedRow], world: World) -> TrainingError:
    advice = memory_advice(config, rows, world)
    return TrainingError(f"There is too little memory for a step on {world.device}. {advice} {RESUMES}")


def memory_advice(config: TrainConfig, rows: Sequence[LoadedRow], world: World) -> str:
    """Return settings that need less memory for rows like these, with estimates."""
    network = open_model(config.model, config.seed, weights=False).network
    adapt(network, config)
    load = RowLoad(
        tokens=max(one.row.num_tokens for one in rows),
        tiles=max(sum(medium.tiles for medium in one.row.media) for one in rows),
        labels=max(one.row.counts.tokens for one in rows),
        rows=len(rows),
        positions=max(one.row.counts.positions for one in rows),
    )
    need = estimate_memory(network, config.compute, load, world_size=world.size, adapter=config.adapter)
    found = [str(one) for one in suggest(network, config, load, world_size=world.size)]
    if config.adapter is None and "language_model" in config.tune:
        found.append("an adapter (--lora): no gradients and optimizer states for most weights")
    estimated = f"These settings need about {need.gpu_bytes / 1e9:.1f} GB on each GPU."
    return f"{estimated} Less with: {'; '.join(found)}." if found else estimated
