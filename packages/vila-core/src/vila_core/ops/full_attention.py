"""Attention without a mask, as in vision towers (reference: `reference.full_attention`).

N images, P tokens, D width, H heads, D_h head width
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""In order of preference. PyTorch itself prefers flash attention, which takes 1.6 times as long as cuDNN on an H200."""


def full_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """`qkv [N, P, 3 D]` (q, k and v side by side), fp16 or bf16 -> `softmax(q kᵀ / sqrt(D_h)) v`, `[N, P, D]`."""
    if not qkv.is_cuda:
        return _attend(qkv, num_heads)
    # cuDNN takes about 60 ms to plan for a new shape, so only powers of two images go together.
    parts = [_attend(part, num_heads) for part in qkv.split(powers_of_two(len(qkv)))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def powers_of_two(count: int) -> list[int]:
    """Return the powers of two whose sum is `count`, the largest first."""
    return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1] or [0]


def _attend(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))  # [N, H, P, D_h]
    with sdpa_kernel(BACKENDS, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
