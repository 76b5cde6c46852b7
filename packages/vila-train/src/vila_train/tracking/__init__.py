"""The callbacks that come with vila-train. `FACTORIES` is cheap to import."""

from __future__ import annotations

from vila_core.plugins.lazy import lazy_function
from vila_train.callbacks import CallbackFactory


def _own(name: str, summary: str, target: str) -> CallbackFactory:
    return CallbackFactory(name, summary, lazy_function(f"vila_train.tracking.{target}"))


FACTORIES = (
    _own("log", "OUT/log.jsonl and OUT/evaluation.jsonl (always)", "log:JsonLog"),
    _own("console", "progress on standard error (always)", "console:Console"),
    _own("loss_plot", "OUT/loss.svg (always)", "loss_plot:LossPlot"),
    _own("tensorboard", "OUT/tensorboard (default)", "tensorboard:TensorBoard"),
    _own("wandb", "Weights & Biases; offline if it cannot be reached", "wandb:WeightsAndBiases"),
    _own("trackio", "Trackio, which is local", "trackio:Trackio"),
    _own("memory", "OUT/memory.json, and on a GPU a snapshot of its memory", "memory:MemoryReport"),
)
