"""Int4 products on a CPU: PyTorch's own for few rows, dequantized panels for many.

M rows, N outputs, K inputs, g group size, G = K / g groups, B outputs of a block, n outputs of a panel

The weight is stored once, as packed by `torch.ops.aten._convert_weight_to_int4pack_for_cpu`: half a byte per weight, in
blocks of B outputs, `[N / B, K, B / 2]`, two outputs per byte. Which two depends on the CPU (`BlockLayout`) and is
detected by packing known numbers; a CPU with an unknown layout is refused.

    w = (q - 8) · scale + zero,    scale and zero = (8 - z) · scale in bf16: `[G, N, 2]`

The second form is tinygemm's. Its bf16 scales cost a relative 2^-9 at most, as much as casting the weights to bf16
does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_quant.kernels.cpu.crossover import multiply
from vila_quant.kernels.kernel import LinearShape
from vila_quant.packing.groupwise import GroupwiseWeight

GROUP_SIZES = (32, 64, 128, 256)
"""Group sizes that PyTorch's product takes."""

ROWS_MULTIPLE = 64
"""Outputs are padded to a multiple of this, the largest block of any CPU, so that there is no partial block."""

PACKED_AT_ONCE = 64 * ROWS_MULTIPLE
"""Outputs packed at once: PyTorch takes int32, which would be gigabytes for a whole vocabulary."""

PANEL_ELEMENTS = 1 << 21
"""Weights unpacked at once; half of them, 4 MB of fp32, are dequantized and stay in the cache until multiplied."""


@dataclass(frozen=True)
class BlockLayout:
    """How a CPU packs: `outputs` B per block; a byte holds outputs j and j + B/2 (`halves`), or 2j and 2j + 1."""

    outputs: int
    halves: bool

    def strip(self, tensor: Tensor, high: int) -> Tensor:
        """View `[R, n, …]` as `[R, n / B, B / 2, …]`: the outputs in low (`high=0`) or high nibbles."""
        half = self.outputs // 2
        if self.halves:
            return tensor.unflatten(1, (-1, 2, half)).select(2, high)
        return tensor.unflatten(1, (-1, half, 2)).select(3, high)


@dataclass(frozen=True)
class CpuInt4PackKernel:
    """Four-bit weights times bf16 activations on a CPU."""

    name: str = "cpu-int4pack"
    target: str = "x86 and ARM CPUs, bf16"
    priority: int = 50

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it runs on a CPU, not on {device.type}"
        if dtype != torch.bfloat16:
            return (
                f"PyTorch's product is fast in bfloat16 only (50 times slower in {str(dtype).removeprefix('torch.')})"
            )
        unfit = shape.unfit(GROUP_SIZES)
        if unfit is not None:
            return unfit
        if (shape.outputs + ROWS_MULTIPLE) * shape.inputs >= 2**31:
            return "PyTorch's product counts the weights of a layer in 32 bits"
        if block_layout() is None:
            return f"PyTorch packs weights in an unknown way on this CPU ({torch.backends.cpu.get_cpu_capability()})"
        return None

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        outputs, inputs = weight.q.shape
        padded = -(-outputs // ROWS_MULTIPLE) * ROWS_MULTIPLE
        scales = weight.scales.T.float()  # [G, N]
        scales_and_zeros = torch.zeros(scales.shape[0], padded, 2, dtype=dtype)
        scales_and_zeros[:, :outputs, 0] = scales
        scales_and_zeros[:, :outputs, 1] = (8 - weight.zeros.T.float()) * scales
        packed = torch.empty(padded, inputs // 2, dtype=torch.uint8)
        for start in range(0, outputs, PACKED_AT_ONCE):
            some = weight.q[start : start + PACKED_AT_ONCE].to("cpu", torch.int32)
            some = F.pad(some, (0, 0, 0, -len(some) % ROWS_MULTIPLE))
            packed[start : start + len(some)] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(some, 1)
        return packed, scales_and_zeros

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        return multiply(self, x, packed, shape)

    def panel_dtypes(self, dtype: torch.dtype) -> Sequence[torch.dtype]:
        return (torch.float32,) if dtype == torch.float32 else (torch.float32, torch.bfloat16)

    def unpacking(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        weight, scales_and_zeros = packed
        # Not through `torch.ops`, which takes 3 µs longer: 0.6 ms per token for a model with 196 linears.
        y = torch._weight_int4pack_mm_for_cpu(x.contiguous(), weight, shape.group_size, scales_and_zeros)  # pyright: ignore
        return y[:, : shape.outputs]

    def panels(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape, dtype: torch.dtype) -> Tensor:
        return _panels(x, packed, dtype)[:, : shape.outputs]


@cache
def block_layout() -> BlockLayout | None:
    """Detect how this CPU packs, by packing numbers and unpacking them in every known way; None if none matches."""
    numbers = torch.randint(16, (2 * ROWS_MULTIPLE, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    for outputs in (64, 32, 16):
        for halves in (True, False):
            layout = BlockLayout(outputs, halves)
            nibbles = enumerate(_nibbles(packed, layout))
            if all(torch.equal(strip, layout.strip(numbers.T, high).flatten(1)) for high, strip in nibbles):
                return layout
    return None


def _panels(x: Tensor, packed: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`x [M, K]` -> `[M, N]`; the weight is dequantized to `dtype` in transposed panels `[K, n / 2]`."""
    weight, scales_and_zeros = packed
    layout = block_layout()
    assert layout is not None, "a CPU of unknown layout was not refused"
    (rows, inputs), outputs = x.shape, weight.shape[0]
    step = max(ROWS_MULTIPLE, PANEL_ELEMENTS // inputs // ROWS_MULTIPLE * ROWS_MULTIPLE)
    x = x.to(dtype)
    y = torch.empty(rows, outputs, dtype=torch.bfloat16)
    for start in range(0, outputs, step):
        own = slice(start, start + step)
        for high, nibbles in enumerate(_nibbles(weight[own], layout)):
            target = layout.strip(y[:, own], high)
            panel = _dequantize(nibbles, layout.strip(scales_and_zeros[:, own], high), dtype)
            target.copy_((x @ panel).view(target.shape))
    return y


def _dequantize(nibbles: Tensor, scales_and_zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """`[K, n / 2]` uint8, overwritten, and `[G, n / B, B / 2, 2]` -> the weights `[K, n / 2]`."""
    groups = scales_and_zeros.shape[0]
    scales, zeros = scales_and_zeros.to(dtype).reshape(groups, 1, -1, 2).unbind(-1)
    grouped = nibbles.view(torch.int8).sub_(8).to(dtype).view(groups, -1, nibbles.shape[1])
    return torch.addcmul(zeros.contiguous(), grouped, scales.contiguous(), out=grouped).flatten(0, 1)


def _nibbles(weight: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """Packed `[n, K / 2]` -> the low and the high nibbles, `[K, n / 2]` uint8 each."""
    half = layout.outputs // 2
    blocks = weight.view(-1, 2 * weight.shape[1], half)  # [n / B, K, B / 2]
    # Move sixteen bytes as one number if blocks are large enough.
    blocks = blocks.view(torch.complex128 if half % 16 == 0 else torch.int64)
    pairs = blocks.transpose(0, 1).contiguous().view(torch.uint8).flatten(1)
    return pairs & 15, pairs >> 4
