"""Settings of `ops.rows`, without Triton.

D columns
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ACTIVATIONS = ("", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
"""Activations by their names in transformers configs; "" is none."""


@dataclass(frozen=True)
class RowFormat:
    """How rows are quantized.

    Attributes:
        dtype: int8 or an 8-bit float.
        largest: the code of a row's largest magnitude.
        smallest_range: smaller magnitudes count as this one, to avoid division by zero.
    """

    dtype: torch.dtype
    largest: float
    smallest_range: float


@dataclass(frozen=True)
class LayerNorm:
    """The weight and bias `[D]` of a layer norm, and what is added to the variance."""

    weight: Tensor
    bias: Tensor
    eps: float
