"""The packed layout of a four-bit weight, shared by all W4A16 kernels.

N outputs, K inputs, g group size (32, 64 or 128)

    y = x Wᵀ + bias,    W[n, k] = (q[n, k] - zero[n, k // g]) · scale[n, k // g]

A **unit** is 32 outputs × 128 inputs, stored contiguously: 512 words of codes, then 128 / g blocks of 32 words with
scales and zero points. Units of the same 32 outputs follow one another along K:

    packed  int32 [N / 32, K / 128, 512 + 32 · 128 / g]

**Codes.** A word holds eight codes: outputs `row` and `row + 8` of a tile of 16, four consecutive inputs. It is exactly
one thread's share of the A operand of `mma.m16n8k16` (16 outputs × 16 inputs), and a thread's 16-byte load covers four
such operands:

    word   [tile 2][half 2][row 8][quad 4][step 4]          output 16 tile + row (+ 8)
    input  64 half + 32 (step // 2) + 8 quad + 4 (step % 2) + 2 pair + odd
    bits   4 (high row) + 8 pair + 16 odd

The product is the same for any order of the inputs. This order lets each thread load its activations 16 bytes at a
time, the four threads of a row together 64 consecutive bytes, and lets a kernel that rebuilds the matrix store 8
consecutive inputs at a time.

**Scales.** A word holds `scale` (fp16, low half) and `-(1024 + zero)` (fp16, high half): a code with the exponent of
1024 put above it reads as 1024 + q in fp16, so the high half is what turns it into q - zero, exactly.

    word   [128 / g][row 8][tile 2][high row 2]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vila_core.errors import ConfigError

GROUP_SIZES = (32, 64, 128)
UNIT_OUTPUTS = 32
UNIT_INPUTS = 128
CODE_WORDS = UNIT_OUTPUTS * UNIT_INPUTS // 8


@dataclass(frozen=True)
class W4Weight:
    """A four-bit weight as the kernels read it.

    N and K are padded to whole units with codes whose scale is 0; `outputs` and `inputs` are the layer's own sizes.
    """

    packed: Tensor
    outputs: int
    inputs: int
    group_size: int

    @classmethod
    def pack(cls, codes: Tensor, scales: Tensor, zeros: Tensor, device: torch.device | None = None) -> W4Weight:
        """Convert a weight.

        On a GPU this waits until the weight is in memory: kernels may read a weight before the kernel launched ahead of
        them has ended.

        Args:
            codes: `[N, K]` uint8, 0 to 15.
            scales: `[N, K / g]`, any floating dtype; stored in fp16.
            zeros: `[N, K / g]`, whole numbers from 0 to 15.
            device: where the packed weight goes; the device of `codes` if None.

        Raises:
            ConfigError: a shape, group size or value that the layout cannot hold.
        """
        device = codes.device if device is None else device
        group_size = _check(codes, scales, zeros)
        packed = _pack(codes.to(device), scales.to(device), zeros.to(device), group_size)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return cls(packed, codes.shape[0], codes.shape[1], group_size)

    def unpack(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes `[N, K]` uint8, scales and zeros `[N, K / g]` float32."""
        return unpack(self.packed, self.outputs, self.inputs, self.group_size)


def unit_words(group_size: int) -> int:
    """Return how many int32 words a unit takes."""
    return CODE_WORDS + UNIT_OUTPUTS * UNIT_INPUTS // group_size


def _check(codes: Tensor, scales: Tensor, zeros: Tensor) -> int:
    if codes.ndim != 2 or codes.dtype != torch.uint8:
        raise ConfigError(f"Got codes of shape {list(codes.shape)} in {codes.dtype}. Expected [N, K] in uint8.")
    outputs, inputs = codes.shape
    if scales.ndim != 2 or scales.shape[0] != outputs or scales.shape != zeros.shape or not scales.shape[1]:
        raise ConfigError(
            f"Got scales {list(scales.shape)} and zeros {list(zeros.shape)}. Expected both [{outputs}, groups]."
        )
    group_size = inputs // scales.shape[1]
    if group_size not in GROUP_SIZES or group_size * scales.shape[1] != inputs:
        raise ConfigError(
            f"Got {scales.shape[1]} groups for {inputs} inputs. The kernels take groups of 32, 64 or 128 inputs."
        )
    if int(codes.max()) > 15:
        raise ConfigError(f"Got a code of {int(codes.max())}. Four-bit codes are 0 to 15.")
    zeros = zeros.float()
    if not bool(((zeros == zeros.round()) & (zeros >= 0) & (zeros <= 15)).all()):
        raise ConfigError(
            "Got a zero point that is not a whole number from 0 to 15. The CUDA W4A16 kernels take no other."
        )
    if not bool(torch.isfinite(scales.half()).all()):
        raise ConfigError(
            f"Got a scale of {scales.float().abs().max().item():.3g}. Expected scales that fp16 can hold, up to 65504."
        )
    return group_size


def _pack(codes: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    outputs, inputs = codes.shape
    rows, columns = -outputs % UNIT_OUTPUTS, -inputs % UNIT_INPUTS
    groups = UNIT_INPUTS // group_size
    codes = F.pad(codes, (0, columns, 0, rows))
    scales, zeros = (F.pad(t, (0, columns // group_size, 0, rows)) for t in (scales.half(), zeros.half()))
    blocks, units = codes.shape[0] // UNIT_OUTPUTS, codes.shape[1] // UNIT_INPUTS

    # outputs: block, tile, high row, row; inputs: unit, half, step // 2, quad, step % 2, pair, odd
    apart = codes.view(blocks, 2, 2, 8, units, 2, 2, 4, 2, 2, 2).permute(0, 4, 1, 5, 3, 7, 6, 8, 10, 9, 2)
    nibbles = apart.reshape(blocks, units, CODE_WORDS, 4, 2)  # … odd and pair, high row
    octets = (nibbles[..., 0] | nibbles[..., 1] << 4).contiguous()
    words = octets.view(torch.int32).squeeze(-1)

    pairs = torch.stack((scales, -(1024 + zeros)), dim=-1).view(torch.int32).squeeze(-1)  # [N, K / g]
    pairs = pairs.view(blocks, 2, 2, 8, units, groups).permute(0, 4, 5, 3, 1, 2)
    return torch.cat((words, pairs.reshape(blocks, units, UNIT_OUTPUTS * groups)), dim=-1).contiguous()


def unpack(packed: Tensor, outputs: int, inputs: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes `[N, K]` uint8, scales and zeros `[N, K / g]` float32."""
    blocks, units, _ = packed.shape
    groups = UNIT_INPUTS // group_size
    octets = packed[..., :CODE_WORDS].contiguous().view(torch.uint8)
    nibbles = torch.stack((octets & 15, octets >> 4), dim=-1).view(blocks, units, 2, 2, 8, 4, 2, 2, 2, 2, 2)
    codes = nibbles.permute(0, 2, 10, 4, 1, 3, 6, 5, 7, 9, 8).reshape(blocks * UNIT_OUTPUTS, units * UNIT_INPUTS)
    pairs = packed[..., CODE_WORDS:].contiguous().view(torch.float16).view(blocks, units, groups, 8, 2, 2, 2)
    scales, offsets = pairs.permute(6, 0, 4, 5, 3, 1, 2).reshape(2, blocks * UNIT_OUTPUTS, units * groups).float()
    columns = inputs // group_size
    return codes[:outputs, :inputs], scales[:outputs, :columns], -offsets[:outputs, :columns] - 1024
