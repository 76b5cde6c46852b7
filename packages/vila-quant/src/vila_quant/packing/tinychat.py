"""TinyChat's layout, version 2 (`*-w4-g128-awq-v2.pt`).

Source: llm-awq, `tinychat/modules/…` and `awq/quantize/qmodule.py` (WQLinear).

N outputs, K inputs, G = K / 128 groups, G' = G rounded up to a multiple of 8

    qweight       int16 [N/4, K]    four outputs interleaved every 64 inputs, four nibbles per word
    scales        fp16  [G', N]     rows from G on are zero
    scaled_zeros  fp16  [G', N]     -(zero · scale), so that w = q · scale + scaled_zero
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.errors import CheckpointError, ConfigError
from vila_quant.packing.groupwise import GroupwiseWeight

GROUP_SIZE = 128
INTERLEAVE = 4
STRIDE = 64


@dataclass(frozen=True)
class TinyChatTensors:
    """The three tensors of a linear layer as the file holds them."""

    qweight: Tensor
    scales: Tensor
    scaled_zeros: Tensor


def pack_tinychat(weight: GroupwiseWeight) -> TinyChatTensors:
    """Pack int4 weights in groups of 128. Raises `ConfigError` for others, or if scales are too small."""
    outputs, inputs = weight.q.shape
    if weight.bits != 4 or weight.group_size != GROUP_SIZE or outputs % INTERLEAVE:
        raise ConfigError(
            f"TinyChat takes 4 bits, groups of {GROUP_SIZE} and a multiple of {INTERLEAVE} outputs; "
            f"got {weight.bits} bits, groups of {weight.group_size}, {outputs} outputs."
        )
    scales = weight.scales.half()
    scaled_zeros = _scaled_zeros(scales, weight.zeros)
    if not torch.equal(_zeros(scales, scaled_zeros), weight.zeros.to(scales.dtype)):
        raise ConfigError(
            f"TinyChat stores zero · scale, from which zeros cannot be recovered for scales as small as "
            f"{scales.abs().min()}."
        )
    padding = padded_groups(inputs // GROUP_SIZE) - inputs // GROUP_SIZE
    return TinyChatTensors(
        _pack(weight.q),
        torch.nn.functional.pad(scales.T, (0, 0, 0, padding)).contiguous(),
        torch.nn.functional.pad(scaled_zeros.T, (0, 0, 0, padding)).contiguous(),
    )


def unpack_tinychat(tensors: TinyChatTensors) -> GroupwiseWeight:
    """Unpack to `q [N, K]`, scales and zeros fp16 `[N, G]`. Raises `CheckpointError` if shapes do not match."""
    qweight, scales, scaled_zeros = tensors.qweight, tensors.scales, tensors.scaled_zeros
    outputs, inputs = INTERLEAVE * qweight.shape[0], qweight.shape[1]
    groups = inputs // GROUP_SIZE
    if inputs % GROUP_SIZE or scales.shape != (padded_groups(groups), outputs) or scaled_zeros.shape != scales.shape:
        raise CheckpointError(
            f"TinyChat tensors do not fit together: qweight {list(qweight.shape)}, scales {list(scales.shape)}, "
            f"scaled_zeros {list(scaled_zeros.shape)}. Expected [N/4, K], [K/128 rounded up to 8, N] twice."
        )
    own_scales = scales[:groups].T.contiguous()
    zeros = _zeros(own_scales, scaled_zeros[:groups].T)
    if not torch.equal(_scaled_zeros(own_scales, zeros), scaled_zeros[:groups].T):
        raise CheckpointError(
            "TinyChat's scaled_zeros are not -(zero · scale) with integer zeros from 0 to 15. The file is damaged."
        )
    return GroupwiseWeight(_unpack(qweight), own_scales, zeros, 4)


def _scaled_zeros(scales: Tensor, zeros: Tensor) -> Tensor:
    return -(scales * zeros.float()).half()


def _zeros(scales: Tensor, scaled_zeros: Tensor) -> Tensor:
    return torch.round(-scaled_zeros.float() / scales.float()).clamp(0, 15).to(scales.dtype)


def padded_groups(groups: int) -> int:
    """Return the number of rows of scales for `groups` groups."""
    return -(-groups // 8) * 8


def _pack(q: Tensor) -> Tensor:
    """Nibbles `[N, K]` uint8 -> words `[N/4, K]` int16."""
    outputs, inputs = q.shape
    # Within 32 inputs, pairs from four columns of eight are adjacent; within eight, even positions come first.
    reordered = q.view(outputs, inputs // 32, 4, 4, 2).permute(0, 1, 3, 2, 4)
    reordered = reordered.reshape(outputs, inputs // 32, 4, 4, 2).permute(0, 1, 2, 4, 3).reshape(outputs, inputs)
    blocks = reordered.reshape(outputs // INTERLEAVE, INTERLEAVE, inputs // STRIDE, STRIDE).permute(0, 2, 1, 3)
    nibbles = blocks.reshape(outputs // INTERLEAVE, inputs, 4).to(torch.int32)
    words = (nibbles << (4 * torch.arange(4, device=q.device, dtype=torch.int32))).sum(-1)
    return torch.where(words >= 2**15, words - 2**16, words).to(torch.int16)


def _unpack(words: Tensor) -> Tensor:
    """Words `[N/4, K]` int16 -> nibbles `[N, K]` uint8."""
    rows, inputs = words.shape
    outputs = INTERLEAVE * rows
    shifts = 4 * torch.arange(4, device=words.device, dtype=torch.int32)
    nibbles = (words.to(torch.int32)[..., None] >> shifts) & 15  # [N/4, K, 4]
    blocks = nibbles.reshape(rows, inputs // STRIDE, INTERLEAVE, STRIDE).permute(0, 2, 1, 3).reshape(outputs, inputs)
    reordered = (
        blocks.reshape(outputs, inputs // 32, 4, 2, 4).permute(0, 1, 2, 4, 3).reshape(outputs, inputs // 32, 4, 4, 2)
    )
    return reordered.permute(0, 1, 3, 2, 4).reshape(outputs, inputs).to(torch.uint8)
