"""AutoAWQ's "gemm" layout, which transformers, vLLM and SGLang read.

Source: AutoAWQ 0.2.9, `awq/modules/linear/gemm.py`.

N outputs, K inputs, g group size, G = K / g groups

    qweight  int32 [K, N/8]    nibble i of word c holds output 8c + ORDER[i]
    qzeros   int32 [G, N/8]    in the same order
    scales   fp16  [G, N]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vila_core.errors import CheckpointError, ConfigError
from vila_quant.packing.groupwise import GroupwiseWeight

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACE = tuple(ORDER.index(column) for column in range(8))


@dataclass(frozen=True)
class GemmTensors:
    """The three tensors of a linear layer as the file holds them."""

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor


def pack_gemm(weight: GroupwiseWeight) -> GemmTensors:
    """Pack int4 weights. Raises `ConfigError` for other bits, or if 8 does not divide the outputs."""
    if weight.bits != 4 or weight.q.shape[0] % 8:
        raise ConfigError(
            f"The gemm layout takes 4 bits and a multiple of 8 outputs; got {weight.bits} bits and "
            f"{weight.q.shape[0]} outputs."
        )
    return GemmTensors(
        qweight=_pack(weight.q.T),
        qzeros=_pack(weight.zeros.T.to(torch.uint8)),
        scales=weight.scales.T.contiguous().half(),
    )


def unpack_gemm(tensors: GemmTensors) -> GroupwiseWeight:
    """Unpack to `q [N, K]`, scales and zeros fp16 `[N, G]`. Raises `CheckpointError` if shapes do not match."""
    qweight, qzeros, scales = tensors.qweight, tensors.qzeros, tensors.scales
    inputs, outputs, groups = qweight.shape[0], 8 * qweight.shape[1], scales.shape[0]
    if qzeros.shape != (groups, outputs // 8) or scales.shape[1] != outputs or groups == 0 or inputs % groups:
        raise CheckpointError(
            f"AWQ tensors do not fit together: qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)}, "
            f"scales {list(scales.shape)}. Expected [K, N/8], [K/g, N/8], [K/g, N]."
        )
    return GroupwiseWeight(
        _unpack(qweight).T.contiguous(), scales.T.contiguous(), _unpack(qzeros).T.to(scales.dtype).contiguous(), 4
    )


def _pack(values: Tensor) -> Tensor:
    """Nibbles `[rows, N]` uint8 -> words `[rows, N/8]` int32."""
    ordered = values.reshape(values.shape[0], -1, 8)[..., list(ORDER)].to(torch.int64)
    words = (ordered << (4 * torch.arange(8, device=values.device))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _unpack(words: Tensor) -> Tensor:
    """Words `[rows, N/8]` int32 -> nibbles `[rows, N]` uint8."""
    shifts = 4 * torch.tensor(_PLACE, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)
