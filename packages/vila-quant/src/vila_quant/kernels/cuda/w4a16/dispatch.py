"""Which kernel takes how many tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vila_quant.kernels.cuda.w4a16.decode import MAX_TOKENS, DecodeConfig, decode
from vila_quant.kernels.cuda.w4a16.tiles import TileConfig, multiply_tiles


def run(x: Tensor, packed: Tensor, bias: Tensor | None, y: Tensor, group_size: int, next_packed: Tensor | None) -> None:
    if x.shape[0] <= MAX_TOKENS:
        decode(x, packed, bias, y, group_size, DecodeConfig(), next_packed=next_packed, pdl=1)
    else:
        multiply_tiles(x, packed, bias, y, group_size, TileConfig())
