"""The interface of a quantization method (hook `vila_quantizers`), its options and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vila_core.language.decoder import Block
    from vila_quant.awq.block import BlockInputs
    from vila_quant.packing.groupwise import GroupwiseWeight


@dataclass(frozen=True)
class BlockOptions:
    """Options for quantizing a block.

    Attributes:
        bits: of each weight.
        group_size: weights per scale; divides the width of every quantized linear.
        skip: linears of the block not to quantize.
        sequences_at_once: calibration sequences per forward pass; bounds the memory.
        stored_dtype: dtype of norms and biases in the file, if narrower than the block's; None for the block's own.
    """

    bits: int = 4
    group_size: int = 128
    skip: frozenset[str] = frozenset()
    sequences_at_once: int = 16
    stored_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class QuantizedBlock:
    """The result of quantizing a block.

    Attributes:
        weights: quantized weights by the linear's name in the block ("self_attn.q_proj"); others are not quantized.
        scales: the applied AWQ scales by "previous|linear,linear", for the file of search results.
        clips: the applied AWQ limits `[N, G, 1]` by the linear's name, for the same file.
        losses: mean squared error of the output by linear or part, (before, after) the search.
    """

    weights: Mapping[str, GroupwiseWeight]
    scales: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    clips: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


@runtime_checkable
class BlockQuantizer(Protocol):
    """A way to quantize a decoder block; `--search NAME` chooses it."""

    @property
    def name(self) -> str: ...

    @property
    def follows_quantized(self) -> bool:
        """Whether a block's inputs come from the quantized blocks before it; otherwise from the unquantized ones."""
        ...

    def quantize_block(
        self, block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions
    ) -> QuantizedBlock:
        """Quantize one block.

        Args:
            block: unquantized; norms, biases and (dequantized) linears are changed in place.
            x: calibration inputs of the block `[B, T, D]`, on the block's device or on the CPU.
            block_inputs: rotation and mask.
            options: bits, group size, linears to skip.

        Raises:
            ConfigError: the group size does not divide a width.
            QuantizationError: a weight or an activation is not finite (the layer is named).
        """
        ...
