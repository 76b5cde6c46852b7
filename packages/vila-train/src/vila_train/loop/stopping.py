"""Ends of a run that are not its last step: signals, a loss that is not finite, and too little memory."""

import signal
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

import torch

from vila_core.errors import listed
from vila_train.config import TrainConfig
from vila_train.errors import TrainingError
from vila_train.loop.loader import LoadedRow
from vila_train.loop.step import StepResult
from vila_train.parallel.world import World
from vila_train.run_folder import RunFolder

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
        f"The loss is {result.loss.item()} and the gradient norm {result.gradient_norm.item()} at step {step}: not "
        f"finite, {where}. The batch is in {saved}. Look at these samples, or lower optimizer.learning_rate or "
        "optimizer.clip_norm; the run resumes from its last checkpoint."
    )


def _tokens(row: LoadedRow) -> dict[str, list[int]]:
    ids, labels, *_ = row.row.integers.split(list(row.row.sizes))
    return {"ids": ids.tolist(), "labels": labels.tolist()}


@contextmanager
def explain_memory(config: TrainConfig) -> Generator[None]:
    """Raise `TrainingError` with advice if the block runs out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(f"There is too little memory for a step. {'; '.join(memory_advice(config))}.") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error):  # PyTorch's allocator on a CPU
            raise
        raise TrainingError(f"There is too little memory for a step. {'; '.join(memory_advice(config))}.") from error


def memory_advice(config: TrainConfig) -> list[str]:
    """Return the settings that save memory and are not used yet, the best first."""
    compute, length = config.compute, config.data.row_length or config.data.max_length
    advice = {
        "Set compute.activation_checkpointing=full": compute.activation_checkpointing != "full",
        "set compute.precision=bf16": compute.precision != "bf16",
        f"set data.row_length={length // 2}, with data.max_length at most that": length >= 1024,
        "train an adapter (--lora)": config.adapter is None,
        "use more GPUs: weights, gradients and optimizer are divided among them": True,
    }
    chosen = [text for text, applies in advice.items() if applies]
    return [chosen[0][0].upper() + chosen[0][1:], *chosen[1:]]
