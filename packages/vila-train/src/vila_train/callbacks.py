"""Callbacks, which receive the reports of a run. The hook `vila_callbacks` registers a `CallbackFactory` for each.

from vila_core import hookimpl
from vila_train.callbacks import CallbackFactory, NoCallback

class Echo(NoCallback):
    def on_end(self, step, reason):
        print(f"ended after step {step}: {reason}")

@hookimpl
def vila_callbacks():
    return [CallbackFactory("echo", "says how the run ended", Echo)]

Select it with `--set logging.callbacks=[tensorboard,echo]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vila_train.config import TrainConfig


@dataclass(frozen=True)
class RunStart:
    """A run begins or resumes.

    Attributes:
        config: resolved.
        folder: of the run.
        first_step: optimizer steps done before; not 0 for a resumed run.
        total_steps: optimizer steps of the whole run.
        world_size: ranks.
        trained_parameters, parameters: how many.
    """

    config: TrainConfig
    folder: Path
    first_step: int
    total_steps: int
    world_size: int
    trained_parameters: int
    parameters: int


@dataclass(frozen=True)
class StepRecord:
    """An optimizer step, over all ranks.

    Attributes:
        step: from 1.
        loss: mean over the labelled tokens of the step; for a model that draws, the sum of `losses`.
        gradient_norm: before clipping.
        learning_rates: by part.
        tokens: all tokens, media included.
        labelled_tokens: tokens that the loss counts.
        padding: share of the room of the step's rows that holds no token.
        samples: that were trained on.
        skipped: samples skipped so far, by reason.
        seconds: of the step.
        data_seconds: of it, waiting for data.
        model_flops: forward and backward floating-point operations of the model, without recomputation.
        mfu: `model_flops` per second over the peak of all GPUs; None on a CPU or an unknown GPU.
        memory_bytes: peak of this rank's GPU memory; None on a CPU.
        losses: of a model that draws: "text", the mean over labelled tokens, and "codes", the mean over codes. Empty
            for other models.
        drawn_positions: of pictures that are to be drawn.
        truncated: samples so far that lost their end because they were too long.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rates: Mapping[str, float]
    tokens: int
    labelled_tokens: int
    padding: float
    samples: int
    skipped: Mapping[str, int]
    seconds: float
    data_seconds: float
    model_flops: float
    mfu: float | None
    memory_bytes: int | None
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    drawn_positions: int = 0
    truncated: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all ranks per second."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def data_share(self) -> float:
        """Share of the step's time that was spent waiting for data."""
        return min(self.data_seconds / max(self.seconds, 1e-9), 1.0)


@runtime_checkable
class Callback(Protocol):
    """Receives what happens, on rank 0 only. An exception in a callback is reported once and does not stop training."""

    def on_start(self, start: RunStart) -> None: ...

    def on_step(self, record: StepRecord) -> None: ...

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None: ...

    def on_checkpoint(self, step: int, folder: Path) -> None: ...

    def on_end(self, step: int, reason: str) -> None:
        """The run ended: `reason` is "finished", "stopped" or the error's message."""
        ...


class NoCallback:
    """Ignores everything: a base for callbacks that want only some of it."""

    def on_start(self, start: RunStart) -> None:
        pass

    def on_step(self, record: StepRecord) -> None:
        pass

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        pass

    def on_checkpoint(self, step: int, folder: Path) -> None:
        pass

    def on_end(self, step: int, reason: str) -> None:
        pass


@dataclass(frozen=True)
class CallbackFactory:
    """A callback that `logging.callbacks` can name.

    Attributes:
        name: in `logging.callbacks`.
        summary: one line on what it does.
        build: makes the callback for one run, before the model is loaded; heavy imports belong here. Raises
            `MissingDependencyError` for a package that is not installed.
    """

    name: str
    summary: str
    build: Callable[[], Callback]
