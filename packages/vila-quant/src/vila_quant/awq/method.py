"""How a block is quantized: the interface of a method (hook `vila_quantizers`), and what it gives back."""

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
    """How to quantize a block.

    Attributes:
        bits: of each weight.
        group_size: divides every width that is quantized.
        skip: linears of the block to leave whole.
        sequences_at_once: of the calibration, to pass the block together; bounds the memory.
        stored_dtype: of norms and biases in the file, where it has fewer bits than the block's; None: the block's own.
    """

    bits: int = 4
    group_size: int = 128
    skip: frozenset[str] = frozenset()
    sequences_at_once: int = 16
    stored_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class QuantizedBlock:
    """A block after quantizing.

    Attributes:
        weights: by the linear's name in the block ("self_attn.q_proj"); linears that are not here stay whole.
        scales: by "previous|linear,linear", the AWQ scales that were applied, for the search results file.
        clips: by the linear's name, the AWQ limits `[N, G, 1]` that were applied, for the same.
        losses: by linear or part, what was lost before and after the search: mean squared error of its output, (before, after).
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
        """Whether the inputs of a block are to come from the quantized blocks before it; else they come from the whole ones."""
        ...

    def quantize_block(
        self, block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions
    ) -> QuantizedBlock:
        """Quantize one block.

        Args:
            block: whole weights; changed in place to what quantizing leaves (norms, biases and linears, dequantized).
            x: calibration inputs of the block `[B, T, D]`, on the block's device or on the CPU.
            block_inputs: of the block.
            options: bits, group size, what to leave out.

        Raises:
            ConfigError: the group size does not divide a width.
            QuantizationError: a weight or an activation is not finite (the layer is named).
        """
        ...
