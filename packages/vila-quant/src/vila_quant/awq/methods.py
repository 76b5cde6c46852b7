"""The methods that come with vila-quant (hook `vila_quantizers`). Cheap to import: torch comes with the first block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vila_core.language.decoder import Block
    from vila_quant.awq.block import Surroundings
    from vila_quant.awq.method import BlockOptions, BlockQuantizer, QuantizedBlock


@dataclass(frozen=True)
class Reference:
    """AWQ as llm-awq searches it: scales, clips, rounding to nearest; every block reads the whole ones' outputs."""

    name: str = "reference"
    follows_quantized: bool = False

    def quantize_block(self, block: Block, x: Tensor, surroundings: Surroundings, options: BlockOptions) -> QuantizedBlock:
        from vila_quant.awq.reference import quantize_reference

        return quantize_reference(block, x, surroundings, options)


@dataclass(frozen=True)
class Best:
    """Scales and ranges that weigh errors by what they cost after compensation, and error-compensated rounding."""

    name: str = "best"
    follows_quantized: bool = True

    def quantize_block(self, block: Block, x: Tensor, surroundings: Surroundings, options: BlockOptions) -> QuantizedBlock:
        from vila_quant.awq.best import quantize_best

        return quantize_best(block, x, surroundings, options)


@dataclass(frozen=True)
class Nearest:
    """Rounding to nearest, for comparison: nothing is searched."""

    name: str = "nearest"
    follows_quantized: bool = False

    def quantize_block(self, block: Block, x: Tensor, surroundings: Surroundings, options: BlockOptions) -> QuantizedBlock:
        from vila_quant.awq.reference import quantize_nearest

        return quantize_nearest(block, x, surroundings, options)


METHODS: dict[str, BlockQuantizer] = {method.name: method for method in (Best(), Reference(), Nearest())}
