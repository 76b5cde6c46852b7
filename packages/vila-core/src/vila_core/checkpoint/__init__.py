"""Checkpoints on disk: one adapter per format, both ways. Nothing in a checkpoint is ever imported or executed.

`open_checkpoint` reads config and weight index without torch; `load_weights` fills a network from file to device.
"""

from typing import TYPE_CHECKING

from vila_core.checkpoint.checkpoint import Checkpoint, Quantization, RawParts, Weights
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.checkpoint.tensors.index import WeightIndex
from vila_core.plugins.lazy import lazy_attributes

if TYPE_CHECKING:
    from vila_core.checkpoint.conversion import convert, save_checkpoint
    from vila_core.checkpoint.load import load_weights
    from vila_core.checkpoint.lora import open_adapter, open_checkpoint
    from vila_core.checkpoint.sizes import Estimate, estimate

__all__ = [
    "Checkpoint",
    "Estimate",
    "Quantization",
    "RawParts",
    "TensorEntry",
    "WeightIndex",
    "Weights",
    "convert",
    "estimate",
    "load_weights",
    "open_adapter",
    "open_checkpoint",
    "save_checkpoint",
]

_LAZY = {
    "Estimate": "sizes",
    "convert": "conversion",
    "estimate": "sizes",
    "load_weights": "load",
    "open_adapter": "lora",
    "open_checkpoint": "lora",
    "save_checkpoint": "conversion",
}
"""Imported on first use: formats need the plugins, and loading needs torch."""


__getattr__ = lazy_attributes(__name__, _LAZY)
