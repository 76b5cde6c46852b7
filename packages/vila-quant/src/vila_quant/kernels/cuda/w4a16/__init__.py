"""Linears with four-bit weights and 16-bit activations (W4A16) on NVIDIA GPUs, in Triton.

weight = W4Weight.pack(codes, scales, zeros, device)
y = matmul(x, weight, bias)
"""

from vila_quant.kernels.cuda.w4a16.layout import W4Weight
from vila_quant.kernels.cuda.w4a16.ops import matmul, swiglu

__all__ = ["W4Weight", "matmul", "swiglu"]
