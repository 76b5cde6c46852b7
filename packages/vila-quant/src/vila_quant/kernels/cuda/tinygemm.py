"""Int4 products on an NVIDIA GPU with PyTorch's `_weight_int4pack_mm` ("tinygemm"), and panels for many rows.

M rows, N outputs, K inputs, g group size, G = K / g groups, I inner tiles of 16 inputs

    w = (q - 8) · scale + zero,    scale and zero = (8 - z) · scale in bf16: `[G, N, 2]`

The weight is stored once, half a byte each, as packed by `_convert_weight_to_int4pack`: words of eight inputs of an
output, `[N / 8, K / 16I, 32, I / 2]` int32. Source: `aten/src/ATen/native/cuda/int4mm.cu`,
`matrix_to_m16n8k16_Bint4_layout`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vila_quant.kernels.kernel import LinearShape
from vila_quant.packing.groupwise import GroupwiseWeight

GROUP_SIZES = (32, 64, 128, 256)
"""Group sizes that PyTorch's product takes."""

FEW_ROWS = 32
"""Up to this many rows PyTorch's product is used, whose time grows with every 16 rows; above, panels and cuBLAS."""

PANEL_ELEMENTS = 1 << 24
"""Weights dequantized at once: 32 MB of bf16, and several times that during unpacking."""


@dataclass(frozen=True)
class TinygemmKernel:
    """Four-bit weights times bf16 activations on an NVIDIA GPU."""

    name: str = "cuda-tinygemm"
    target: str = "NVIDIA GPUs from sm80, bf16"
    priority: int = 50

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or torch.version.hip is not None:
            return f"it runs on an NVIDIA GPU, not on {'ROCm' if device.type == 'cuda' else device.type}"
        if dtype != torch.bfloat16:
            return f"PyTorch's product takes bfloat16 only, not {str(dtype).removeprefix('torch.')}"
        unfit = shape.unfit(GROUP_SIZES)
        if unfit is not None:
            return unfit
        if shape.outputs % 8:
            return f"it takes a multiple of 8 outputs, not {shape.outputs}"
        if not torch.cuda.is_available():
            return "there is no such GPU on this machine"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"it needs sm80 or later; this GPU is sm{major}{minor}"
        if not layout_is_known(device):
            return f"PyTorch {torch.__version__} packs weights in an unknown way on this GPU"
        return None

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        scales = weight.scales.T.to(device, torch.float32)  # [G, N]
        zeros = (8 - weight.zeros.T.to(device, torch.float32)) * scales
        scales_and_zeros = torch.stack([scales, zeros], dim=-1).to(dtype).contiguous()
        return pack_words(weight.q.to(device), torch.ops.aten._convert_weight_to_int4pack), scales_and_zeros

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        words, scales_and_zeros = packed
        if x.shape[0] == 0:
            return x.new_empty(0, shape.outputs)
        if x.shape[0] <= FEW_ROWS:
            return torch.ops.aten._weight_int4pack_mm(x.contiguous(), words, shape.group_size, scales_and_zeros)
        y = x.new_empty(x.shape[0], shape.outputs)
        step = max(8, PANEL_ELEMENTS // shape.inputs // 8 * 8)
        for start in range(0, shape.outputs, step):
            end = min(start + step, shape.outputs)
            y[:, start:end] = x @ dequantize_words(words[start // 8 : end // 8], scales_and_zeros[:, start:end]).T
        return y


def pack_words(q: Tensor, convert: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`q [N, K]` uint8 -> words. `convert` is PyTorch's operator: two inputs per byte, the first in the high nibble."""
    inner_tiles = next(tiles for tiles in (8, 4, 2) if q.shape[1] % (16 * tiles) == 0)
    return convert((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), inner_tiles)


def unpack_words(words: Tensor) -> Tensor:
    """Words -> `q [N, K]` uint8.

    Lane 4r + c of a warp holds, of output r, the eight inputs 8i + 2c + h of every 32: nibble i + 4h of a word.
    """
    tiles, outer, _, inner = words.shape
    shifts = 4 * torch.arange(8, device=words.device, dtype=torch.int32)
    nibbles = ((words[..., None] >> shifts) & 15).to(torch.uint8)  # [N/8, K/16I, 32, I/2, 8]
    apart = nibbles.view(tiles, outer, 8, 4, inner, 2, 4)  # … r, c, word, h, i
    return apart.permute(0, 2, 1, 4, 6, 3, 5).reshape(8 * tiles, 32 * outer * inner)


def dequantize_words(words: Tensor, scales_and_zeros: Tensor) -> Tensor:
    """Words and `[G, N, 2]` -> the weight `[N, K]` in the dtype of the scales."""
    q = unpack_words(words)
    groups, outputs, _ = scales_and_zeros.shape
    scales, zeros = scales_and_zeros.permute(2, 1, 0).contiguous().unsqueeze(-1)  # [N, G, 1] each
    grouped = q.view(torch.int8).sub_(8).to(scales.dtype).view(outputs, groups, -1)
    return torch.addcmul(zeros, grouped, scales).view(outputs, -1)


@cache
def layout_is_known(device: torch.device) -> bool:
    """Return whether words packed on this GPU unpack to the original numbers."""
    generator = torch.Generator().manual_seed(0)
    for inputs in (32, 64, 256):
        q = torch.randint(16, (16, inputs), dtype=torch.uint8, generator=generator).to(device)
        if not torch.equal(unpack_words(pack_words(q, torch.ops.aten._convert_weight_to_int4pack)), q):
            return False
    return True
