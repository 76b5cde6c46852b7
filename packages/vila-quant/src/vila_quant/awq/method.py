"""How a block is quantized: the interface of a method (hook `vila_quantizers`), and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from vila_core.language.decoder import Block
    from vila_quant.awq.block import Surroundings
    from vila_quant.groupwise import GroupwiseWeight


@dataclass(frozen=True)
class BlockOptions:
    """Attributes: `bits`; `group_size`, dividing every width that is quantized; `skip`, linears of the block to leave whole."""

    bits: int = 4
    group_size: int = 128
    skip: frozenset[str] = frozenset()


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

    def quantize_block(self, block: Block, x: Tensor, surroundings: Surroundings, options: BlockOptions) -> QuantizedBlock:
        """Quantize one block.

        Args:
            block: whole weights; changed in place to what quantizing leaves (norms, biases and linears, dequantized).
            x: calibration inputs of the block `[B, T, D]`, in batches as memory allows (see `vila_quant.awq.block`).
            surroundings: of the block.
            options: bits, group size, what to leave out.

        Raises:
            ConfigError: the group size does not divide a width.
            QuantizationError: a weight or an activation is not finite (the layer is named).
        """
        ...
