"""Quantize the output head: to int8 by rows, or to group-wise int4 with compensated rounding.

V vocabulary rows, D width, B sequences, T tokens
"""

import torch
from torch import Tensor

from vila_core.language.decoder import RMSNorm
from vila_quant.awq.moments import add_products
from vila_quant.awq.ranges import search_ranges
from vila_quant.awq.rounding import feedback, round_compensated
from vila_quant.kernels.int8 import quantize_rows
from vila_quant.packing.groupwise import GroupwiseWeight
from vila_quant.quantizing.blocks import gemm_tensors
from vila_quant.quantizing.plan import HEAD

ROWS_AT_ONCE = 16384


@torch.no_grad()
def quantize_head_int8(weight: Tensor) -> dict[str, Tensor]:
    """`weight [V, D]` -> `llm.lm_head.weight` int8 and `llm.lm_head.weight_scale` fp32 `[V, 1]`, symmetric by rows."""
    codes, scales = zip(*(quantize_rows(rows.float()) for rows in weight.split(ROWS_AT_ONCE)), strict=True)
    return {f"{HEAD}.weight": torch.cat(codes).cpu(), f"{HEAD}.weight_scale": torch.cat(scales).float().cpu()}


@torch.no_grad()
def quantize_head_int4(
    weight: Tensor, hidden: Tensor, norm: Tensor, eps: float, bits: int, group_size: int
) -> dict[str, Tensor]:
    """Quantize `weight [V, D]` using the last block's outputs `hidden [B, T, D]` and the final norm `[D]`."""
    device = weight.device
    final_norm = RMSNorm(len(norm), eps).to(device, hidden.dtype)
    final_norm.weight.copy_(norm)
    moments = torch.zeros(len(norm), len(norm), device=device)
    for sequence in hidden:
        add_products(moments, final_norm(sequence.to(device)))
    factor = feedback(moments.div_(hidden.shape[0] * hidden.shape[1]), HEAD)
    parts: list[GroupwiseWeight] = []
    for rows in weight.split(ROWS_AT_ONCE):
        whole = rows.float()
        grid = search_ranges(whole, factor.costs, group_size, bits)
        parts.append(round_compensated(whole, factor, *grid, bits))
    q, scales, zeros = (
        torch.cat(tensors) for tensors in zip(*((part.q, part.scales, part.zeros) for part in parts), strict=True)
    )
    return gemm_tensors(HEAD, GroupwiseWeight(q, scales, zeros, bits))
