"""Predicted decode rates of common GPUs, from the bytes of a step over the GPU's bandwidth. Nothing here was measured
on those GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vila_core.bench.limits import Limits
from vila_core.bench.published import published
from vila_core.bench.random_model import WEIGHT_KINDS, WeightKind, random_checkpoint
from vila_core.bench.shapes import LANGUAGE_SHAPES
from vila_core.bench.work import Work, work_of
from vila_core.checkpoint import estimate

MODELS = ("nvila-3b", "nvila-8b", "vila1.5-40b")
CONTEXT = 300
"""Tokens before the predicted one."""
READ_PART = 0.95
"""Part of its nominal bandwidth at which an H100 reads (3.19 of 3.35 TB/s)."""
SECONDS_PER_LAYER = 17e-6
"""What a layer takes besides reading, on an H100: 14 to 21 µs for NVILA-3B and 8B, in 4 and 16 bits."""
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU with its nominal bandwidth in GB/s and its memory in GiB, as its maker states them."""

    name: str
    bandwidth: float
    memory: float


GPUS = (
    Gpu("Jetson AGX Orin 32GB", 204.8, 32),
    Gpu("Jetson AGX Orin 64GB", 204.8, 64),
    Gpu("RTX 3090", 936, 24),
    Gpu("RTX 4090", 1008, 24),
    Gpu("RTX 5090", 1792, 32),
    Gpu("A100 40GB", 1555, 40),
    Gpu("A100 80GB", 2039, 80),
    Gpu("H100 SXM", 3352, 80),
    Gpu("H200", 4800, 141),
)


@dataclass(frozen=True)
class Prediction:
    """Tokens per second of one model on one GPU; None where its weights do not fit.

    Attributes:
        limit: if reading at the nominal bandwidth were all.
        predicted: at `READ_PART` of it, and with `SECONDS_PER_LAYER`.
        published: by TinyChat's authors, if at all.
    """

    gpu: str
    model: str
    weights: str
    limit: float | None
    predicted: float | None
    published: float | None


def predict(models: Sequence[str] = MODELS) -> list[Prediction]:
    """Return predictions for every GPU. Raises `MissingDependencyError` without vila-quant."""
    return [row for model in models for weights in WEIGHT_KINDS for row in _predict(model, weights)]


def _predict(model: str, weights: WeightKind) -> list[Prediction]:
    checkpoint = random_checkpoint(model, weights)
    work, size = (
        work_of(checkpoint, checkpoint.config.dtype),
        estimate(checkpoint).weight_bytes(checkpoint.config.dtype),
    )
    layers = LANGUAGE_SHAPES[model].num_hidden_layers
    rows: list[Prediction] = []
    for gpu in GPUS:
        fits = size < 0.9 * gpu.memory * GIB
        limit, predicted = _rates(work, layers, gpu) if fits else (None, None)
        rows.append(
            Prediction(gpu.name, model, weights, limit, predicted, published(model, weights, "decode", gpu.name))
        )
    return rows


def _rates(work: Work, layers: int, gpu: Gpu) -> tuple[float, float]:
    nominal, real = (Limits(part * gpu.bandwidth * 1e9, 1.0) for part in (1.0, READ_PART))
    return 1 / work.step_seconds(CONTEXT, nominal), 1 / (work.step_seconds(CONTEXT, real) + layers * SECONDS_PER_LAYER)


def predictions_markdown(rows: Sequence[Prediction]) -> str:
    """Return a table with a row per GPU and a column per model."""
    columns = list(dict.fromkeys((row.model, row.weights) for row in rows))
    found = {(row.gpu, row.model, row.weights): row for row in rows}
    lines = [
        "| GPU | " + " | ".join(f"{model} {weights}" for model, weights in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for gpu in dict.fromkeys(row.gpu for row in rows):
        cells = [predicted_text(found[gpu, model, weights]) for model, weights in columns]
        lines.append(f"| {gpu} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def predicted_text(row: Prediction) -> str:
    """Return the predicted rate and, in parentheses, TinyChat's."""
    if row.predicted is None:
        return "does not fit"
    return f"{row.predicted:.0f}" + (f" ({row.published:.0f})" if row.published is not None else "")
