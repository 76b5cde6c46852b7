"""The numbers that trackers draw, by name: the same ones in TensorBoard, Weights & Biases and Trackio."""

import math
from collections.abc import Mapping

from vila_train.callbacks import StepRecord


def step_scalars(record: StepRecord) -> dict[str, float]:
    """Return the numbers of a step. Shares are in [0, 1], speeds per second over all ranks, memory in GB."""
    found: dict[str, float | None] = {
        "train/loss": record.loss,
        **{f"train/loss/{name}": loss for name, loss in record.losses.items()},
        "train/gradient_norm": record.gradient_norm,
        **{f"train/learning_rate/{part}": rate for part, rate in record.learning_rates.items()},
        "speed/tokens_per_second": record.tokens_per_second,
        "speed/samples_per_second": record.samples / max(record.seconds, 1e-9),
        "speed/seconds_per_step": record.seconds,
        "speed/mfu": record.mfu,
        "speed/waiting_for_data": record.data_share,
        "data/tokens": record.tokens,
        "data/labelled_tokens": record.labelled_tokens,
        "data/padding": record.padding,
        **{f"data/skipped/{reason}": count for reason, count in record.skipped.items()},
        "data/truncated": record.truncated or None,
        "memory/gpu_peak_gb": None if record.memory_bytes is None else record.memory_bytes / 1e9,
    }
    return _finite(found)


def evaluation_scalars(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the measures of an evaluation."""
    return _finite({f"evaluation/{name}": value for name, value in scores.items()})


def _finite(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
