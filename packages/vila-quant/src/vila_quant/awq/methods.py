"""The methods that come with vila-quant (hook `vila_quantizers`). Cheap to import: torch comes with the first block."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vila_core.language.decoder import Block
    from vila_quant.awq.block import BlockInputs
    from vila_quant.awq.method import BlockOptions, BlockQuantizer, QuantizedBlock


@dataclass(frozen=True)
class Method:
    """A method of this distribution: the function `function` of `vila_quant.awq.<module>`, imported with the first block."""

    name: str
    follows_quantized: bool
    module: str
    function: str

    def quantize_block(
        self, block: Block, x: Tensor, block_inputs: BlockInputs, options: BlockOptions
    ) -> QuantizedBlock:
        quantize = vars(import_module(f"vila_quant.awq.{self.module}"))[self.function]
        return quantize(block, x, block_inputs, options)


BEST = Method("best", True, "best", "quantize_best")
"""Scales and ranges that weigh errors by what they cost after compensation, and error-compensated rounding."""
REFERENCE = Method("reference", False, "reference", "quantize_reference")
"""AWQ as llm-awq searches it: scales, clips, rounding to nearest; every block reads the whole ones' outputs."""
NEAREST = Method("nearest", False, "reference", "quantize_nearest")
"""Rounding to nearest, for comparison: nothing is searched."""

METHODS: dict[str, BlockQuantizer] = {method.name: method for method in (BEST, REFERENCE, NEAREST)}
