"""Int4 products on a CPU, compiled for it by numba: limited only by the bandwidth of memory.

M rows, N outputs, K inputs, g group size, G = K / g groups, B = N / 16 blocks of outputs (padded), n outputs of a panel

Each weight takes half a byte, and each group three bytes: the float16 scale of the file, and the zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vila_quant.kernels.cpu import crossover
from vila_quant.kernels.cpu.compiled.compiler import as_floats, as_numbers, share_threads
from vila_quant.kernels.cpu.compiled.products import Nibbles, byte_product, fill_panel
from vila_quant.kernels.cpu.compiled.tiles import nibble_product
from vila_quant.kernels.cpu.compiled.vectors import HAS_BFLOAT16_MATRICES, ROWS, WORD
from vila_quant.kernels.cpu.pages import large_pages
from vila_quant.kernels.kernel import LinearShape
from vila_quant.packing.groupwise import GroupwiseWeight

GROUP_SIZES = (32, 64, 128)
"""Sums of larger groups would not fit into 32 bits (see `vectors`)."""

PACKED_AT_ONCE = 1 << 22
"""Weights packed at once: a temporary needs eight bytes for each."""

PANEL_ELEMENTS = 1 << 24
"""Weights dequantized at once, 32 MB of bf16: a product with fewer outputs leaves matrix units idle."""

SHIFTS = (0, 16, 4, 20, 8, 24, 12, 28)
"""The first bit of each of a word's eight inputs."""


@dataclass(frozen=True)
class CompiledKernel:
    """Four-bit weights times activations of any floating dtype on a CPU."""

    name: str = "cpu-numba"
    target: str = "x86 and ARM CPUs"
    priority: int = 100

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it runs on a CPU, not on {device.type}"
        return shape.unfit(GROUP_SIZES)

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        """Return words `[B, K / 8, 16]` int32, scales `[B, G, 16]` float16 and zeros `[B, G, 16]` uint8."""
        outputs, inputs = weight.q.shape
        words = large_pages((-(-outputs // ROWS), inputs // WORD, ROWS), torch.int32)
        blocks = max(1, PACKED_AT_ONCE // inputs // ROWS)
        for some, q in zip(words.split(blocks), weight.q.split(blocks * ROWS), strict=True):
            some.copy_(_pack_words(_blocks(q.to("cpu", torch.int32))))
        return words, _blocks(weight.scales.to("cpu", torch.float16)), _blocks(weight.zeros.to("cpu", torch.uint8))

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        return crossover.multiply(self, x, packed, shape)

    def panel_dtypes(self, dtype: torch.dtype) -> Sequence[torch.dtype]:
        """Tiles multiply 1.6 times as fast as float32 vectors do, so that only matrix units in bfloat16 are faster."""
        is_exact_enough = dtype != torch.float32
        return (torch.bfloat16,) if is_exact_enough and HAS_BFLOAT16_MATRICES else ()

    def unpacking(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        y = torch.from_numpy(nibble_product(as_floats(x), nibbles(packed), share_threads()))
        return y[:, : shape.outputs].to(x.dtype)

    def panels(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape, dtype: torch.dtype) -> Tensor:
        share_threads()
        weight = nibbles(packed)
        outputs = len(weight.words) * ROWS
        step = max(ROWS, PANEL_ELEMENTS // shape.inputs // ROWS * ROWS)
        cast = x.to(dtype)
        panels: list[Tensor] = []
        for start in range(0, outputs, step):
            panel = torch.empty(min(step, outputs - start), shape.inputs, dtype=dtype)
            fill_panel(weight, start // ROWS, as_numbers(panel))
            panels.append(F.linear(cast, panel))
        y = panels[0] if len(panels) == 1 else torch.cat(panels, dim=1)
        return y[:, : shape.outputs].to(x.dtype)


def multiply_bytes(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x [M, K]`, `weight [N, K]` int8, `scale [N]` float32 -> `[M, N]` in the dtype of `x`; K is a multiple of 32."""
    share_threads()
    size = next(size for size in reversed(GROUP_SIZES) if x.shape[1] % size == 0)
    return torch.from_numpy(byte_product(as_floats(x), weight.numpy(), scale.numpy(), size)).to(x.dtype)


def nibbles(packed: Sequence[Tensor]) -> Nibbles:
    """Return the result of `CompiledKernel.pack` for compiled functions, sharing its memory."""
    words, scales, zeros = packed
    return Nibbles(words.numpy(), scales.view(torch.int16).numpy(), zeros.numpy())


def _blocks(tensor: Tensor) -> Tensor:
    """`[N, C]` -> `[B, C, 16]`, zeros after the N outputs."""
    padded = F.pad(tensor, (0, 0, 0, -len(tensor) % ROWS))
    return padded.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def _pack_words(q: Tensor) -> Tensor:
    """`[B, K, 16]` int32 of four bits -> words `[B, K / 8, 16]` int32."""
    eights = q.unflatten(1, (-1, WORD)).unbind(2)
    words = torch.zeros_like(eights[0])
    for eighth, shift in zip(eights, SHIFTS, strict=True):
        words |= eighth << shift
    return words
