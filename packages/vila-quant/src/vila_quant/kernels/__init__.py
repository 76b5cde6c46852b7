"""Kernels for linear layers with quantized weights, and the choice among them.

from vila_quant.kernels import choose

kernel = choose(shape, device, dtype)
packed = kernel.pack(weight, device, dtype)     # once, when the model is loaded
y = kernel.multiply(x, packed, shape)           # x [M, K] -> y [M, N]
"""

from vila_quant.kernels.kernel import LinearShape, MatmulKernel
from vila_quant.kernels.registry import choose, choose_eight_bit, forced

__all__ = ["LinearShape", "MatmulKernel", "choose", "choose_eight_bit", "forced"]
