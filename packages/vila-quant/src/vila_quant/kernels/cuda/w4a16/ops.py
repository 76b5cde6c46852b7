"""`matmul`, the one function that callers need: a torch custom op that picks the kernel from the number of tokens.

It runs on the current stream, allocates only its result and work space, and can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_core.errors import ConfigError
from vila_core.ops.swiglu import swiglu as swiglu_of_product
from vila_quant.kernels.cuda.w4a16.decode import DecodeConfig, decode
from vila_quant.kernels.cuda.w4a16.dispatch import choose, launches_early, run
from vila_quant.kernels.cuda.w4a16.layout import UNIT_INPUTS, UNIT_OUTPUTS, W4Weight

DTYPES = (torch.float16, torch.bfloat16)


def matmul(x: Tensor, weight: W4Weight, bias: Tensor | None = None, *, following: Tensor | None = None) -> Tensor:
    """`x [..., K] -> x Wᵀ + bias [..., N]` in the dtype of `x`.

    Args:
        x: fp16 or bf16, on the GPU of the weight.
        weight: the packed weight.
        bias: `[N]` in the dtype of `x`.
        following: what the linear that runs next reads first, if known: part of it is prefetched into the L2 cache.

    Raises:
        ConfigError: a dtype or shape that does not fit.
    """
    if x.dtype not in DTYPES or (bias is not None and bias.dtype != x.dtype):
        with_bias = "" if bias is None else f" and a bias in {bias.dtype}"
        raise ConfigError(f"Got activations in {x.dtype}{with_bias}. Expected fp16 or bf16, and a bias in the same.")
    if x.shape[-1] != weight.inputs:
        raise ConfigError(f"Got activations {list(x.shape)} for a weight of {weight.inputs} inputs.")
    rows = x.reshape(-1, weight.inputs)
    y = w4a16_matmul(rows, weight.packed, bias, weight.outputs, weight.group_size, following)
    return y.view(*x.shape[:-1], weight.outputs)


@torch.library.custom_op("vila_quant::w4a16_matmul", mutates_args=(), device_types="cuda")
def w4a16_matmul(
    x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, group_size: int, next_packed: Tensor | None
) -> Tensor:
    """`x [M, K] -> [M, N]`. See `matmul`."""
    y = x.new_empty(x.shape[0], outputs)
    if x.shape[0]:
        config = choose(x.shape[0], outputs, x.shape[1], x.device)
        run(config, _aligned(x, packed.shape[1] * UNIT_INPUTS), packed, bias, y, group_size, next_packed)
    return y


@w4a16_matmul.register_fake
def _(
    x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int, group_size: int, next_packed: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


def swiglu(x: Tensor, weight: W4Weight, *, following: Tensor | None = None) -> Tensor:
    """`x [M, K] -> silu(x W_gateᵀ) · (x W_upᵀ) [M, N]`.

    Args:
        x: fp16 or bf16, on the GPU of the weight.
        weight: gate and up, one after the other, `2N` outputs; N a multiple of 32.
        following: what the linear that runs next reads first, to be prefetched into the L2 cache.
    """
    assert weight.outputs % (2 * UNIT_OUTPUTS) == 0
    return w4a16_swiglu(x, weight.packed, weight.outputs // 2, weight.group_size, following)


@torch.library.custom_op("vila_quant::w4a16_swiglu", mutates_args=(), device_types="cuda")
def w4a16_swiglu(x: Tensor, packed: Tensor, outputs: int, group_size: int, next_packed: Tensor | None) -> Tensor:
    """`x [M, K] -> [M, N]`. See `swiglu`."""
    config = choose(max(1, x.shape[0]), 2 * outputs, x.shape[1], x.device)
    if not isinstance(config, DecodeConfig):
        return swiglu_of_product(w4a16_matmul(x, packed, None, 2 * outputs, group_size, next_packed))
    y = x.new_empty(x.shape[0], outputs)
    if x.shape[0]:
        rows = _aligned(x, packed.shape[1] * UNIT_INPUTS)
        config = replace(config, tiles=2)
        pdl = launches_early(x.device)
        decode(rows, packed, None, y, group_size, config, next_packed=next_packed, swiglu=True, pdl=pdl)
    return y


@w4a16_swiglu.register_fake
def _(x: Tensor, packed: Tensor, outputs: int, group_size: int, next_packed: Tensor | None) -> Tensor:
    del packed, group_size, next_packed
    return x.new_empty(x.shape[0], outputs)


def _aligned(x: Tensor, inputs: int) -> Tensor:
    """Return `x` with whole units of inputs and rows that start at multiples of 16 bytes."""
    if x.shape[1] != inputs:
        return F.pad(x, (0, inputs - x.shape[1]))
    if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
        return x.clone(memory_format=torch.contiguous_format)
    return x
