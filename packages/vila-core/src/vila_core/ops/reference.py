"""The operators in plain PyTorch, in the dtype of their inputs: the oracles of the kernels (run them in float64).

B rows, D width, N outputs, K inputs, H query heads, H_kv key/value heads, D_h head width, S slots, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return `rms_norm(x + residual) · weight` and `x + residual`, both `[B, D]`."""
    total = x if residual is None else x + residual
    return F.rms_norm(total, total.shape[-1:], weight, eps), total


def swiglu(gate_up: Tensor) -> Tensor:
    """`[B, 2N]` (gate, then up) -> `silu(gate) · up` `[B, N]` (Shazeer 2020)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """`x [B, K]`, weights `[N_i, K]` -> their products side by side, `[B, ΣN_i]`."""
    return torch.cat([F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads `[..., D_h]`; `cos` and `sin` `[..., D_h / 2]`. A head's halves are real and imaginary parts."""
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)


def rotate_and_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate queries and keys of one token per row, and write keys and values to slot `positions[b]` of row b.

    `qkv [B, (H + 2 H_kv) · D_h]`, `cos`, `sin` `[S, D_h / 2]`, `positions [B]`, `keys`, `values` `[B, H_kv, S, D_h]` ->
    queries `[B, H, D_h]` and the new caches. A row whose position is negative writes nothing.
    """
    (rows, num_kv_heads, _, width) = keys.shape
    heads = qkv.view(rows, -1, width)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    index = positions.clamp(min=0)
    angle = cos[index][:, None].to(qkv.dtype), sin[index][:, None].to(qkv.dtype)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    keys, values = keys.clone(), values.clone()
    for row in range(rows):
        if positions[row] >= 0:
            keys[row, :, positions[row]] = rotate(k, *angle)[row]
            values[row, :, positions[row]] = v[row]
    return rotate(q, *angle), keys, values


def decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rotate_and_write`, then each row attends to its slots up to its position: `[B, H · D_h]` and the new caches.

    A row whose position is negative returns zeros.
    """
    q, keys, values = rotate_and_write(qkv, cos, sin, positions, keys, values)
    (rows, num_heads, width), num_kv_heads = q.shape, keys.shape[1]
    out = torch.zeros_like(q)
    for row in range(rows):
        end = int(positions[row]) + 1
        start = 0 if window is None else max(0, end - window)
        if end <= 0:
            continue
        k = keys[row, :, start:end].to(q.dtype).repeat_interleave(num_heads // num_kv_heads, dim=0)  # [H, T, D_h]
        v = values[row, :, start:end].to(q.dtype).repeat_interleave(num_heads // num_kv_heads, dim=0)
        scores = (k @ q[row, :, :, None])[..., 0] / math.sqrt(width)
        out[row] = (scores.softmax(dim=-1)[:, None] @ v)[:, 0]
    return out.view(rows, -1), keys, values


def kept_tokens(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return which tokens of `logits [V]` (divided by the temperature) may be chosen, bool `[V]`.

    The `top_k` largest (0: all), ties included; of these the likeliest until they reach the probability `top_p`: a
    token stays if those above it have less.
    """
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < len(logits):
        kept = logits >= logits.topk(top_k).values[-1]
    if top_p < 1:
        probabilities = logits.masked_fill(~kept, -math.inf).softmax(dim=-1)
        above = torch.stack([probabilities[logits > logit].sum() for logit in logits])
        kept &= above < top_p
    return kept
