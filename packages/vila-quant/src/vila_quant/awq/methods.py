"""The built-in quantization methods (hook `vila_quantizers`). Torch is imported with the first block."""

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
    """A built-in method: the function `function` of `vila_quant.awq.<module>`, imported with the first block."""

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
"""Scales and ranges chosen by the cost of errors after compensation, then error-compensated rounding."""
REFERENCE = Method("reference", False, "reference", "quantize_reference")
"""AWQ as in llm-awq: scales, clips, rounding to nearest. Every block reads the unquantized blocks' outputs."""
NEAREST = Method("nearest", False, "reference", "quantize_nearest")
"""Rounding to nearest without a search, for comparison."""

METHODS: dict[str, BlockQuantizer] = {method.name: method for method in (BEST, REFERENCE, NEAREST)}
