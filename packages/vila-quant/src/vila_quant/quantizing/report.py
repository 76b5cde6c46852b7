"""The report of a run: what was quantized, how much it lost, and what it takes."""

import os
from collections.abc import Mapping
from pathlib import Path

from vila_core.checkpoint import Checkpoint, estimate
from vila_core.config import Config
from vila_quant.calibration.embedding import Calibration

REPORT = "quantization_report"
"""Stem of the report's files, `.json` and `.html`."""
CONTEXT = 4096
"""Context length for the expected memory."""


class LayerReport(Config):
    """Mean squared error of a layer's output after plain rounding and after the search, and the power of its update."""

    layer: int
    mse_nearest: float
    mse: float
    power: float
    parts: dict[str, tuple[float, float]]
    seconds: float

    @classmethod
    def read(cls, layer: int, record: Mapping[str, object]) -> "LayerReport":
        """Return the report for the record of a finished layer."""
        return cls.model_validate({"layer": layer, **record})


class CalibrationReport(Config):
    """The calibration data; `digest` is the SHA-256 of token ids and pixels."""

    source: str
    samples: int
    sequences: int
    sequence_length: int
    digest: str

    @classmethod
    def of(cls, calibration: Calibration, source: str) -> "CalibrationReport":
        """Return the report of a calibration."""
        sequences, length = calibration.samples.shape
        return cls(
            source=source,
            samples=calibration.count,
            sequences=sequences,
            sequence_length=length,
            digest=calibration.digest,
        )


class PartSizes(Config):
    """Stored bytes of a part of the model, before and after."""

    before: int
    after: int


class Sizes(Config):
    """Stored bytes by part, and bytes of the KV cache of `context` tokens in 16 bits (None if unknown)."""

    parts: dict[str, PartSizes]
    context: int
    cache_bytes: int | None

    @property
    def before(self) -> int:
        return sum(part.before for part in self.parts.values())

    @property
    def after(self) -> int:
        return sum(part.after for part in self.parts.values())


class BranchReport(Config):
    """Relative root mean square error of the output of a branch of the vision tower, with SmoothQuant's α."""

    branch: str
    alpha: float | None
    error: float


class QuantizationReport(Config):
    """The report of a run. It is published with the checkpoint, so it names local files and folders without their path.

    Attributes:
        run: SHA-256 of everything that the result depends on.
        model: name of the original.
        adapter: name of the adapter merged into it.
        method: the search method.
        options: the options, by name.
        head_error: relative root mean square error of the scores, if the head is quantized.
    """

    run: str
    model: str
    adapter: str | None
    method: str
    options: dict[str, object]
    device: str
    calibration: CalibrationReport
    layers: list[LayerReport]
    vision: list[BranchReport]
    head_error: float | None
    sizes: Sizes
    seconds: dict[str, float]
    peak_memory_bytes: int
    version: str

    @property
    def remaining(self) -> float:
        """The loss over all layers, relative to that of rounding to nearest."""
        return sum(layer.mse for layer in self.layers) / max(sum(layer.mse_nearest for layer in self.layers), 1e-30)


def sizes_of(before: Checkpoint, after: Checkpoint) -> Sizes:
    """Return the sizes of a checkpoint before and after."""
    whole, quantized = estimate(before), estimate(after)
    parts = {
        name: PartSizes(before=part.nbytes, after=quantized.parts[name].nbytes) for name, part in whole.parts.items()
    }
    return Sizes(parts=parts, context=CONTEXT, cache_bytes=whole.cache_bytes("bfloat16", CONTEXT))


def published_name(path_or_hub_id: str | Path) -> str:
    """Return the name of a local file or folder without its path; hub ids and other names are unchanged."""
    path = Path(path_or_hub_id).expanduser()
    return path.resolve().name if os.path.exists(path) else str(path_or_hub_id)
