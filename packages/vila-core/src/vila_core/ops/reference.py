"""The operators in plain PyTorch, in the dtype of their inputs: the oracles of the kernels (run them in float64).

B rows, D width, N outputs, K inputs, H query heads, H_kv key/value heads, D_h head width, S slots, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
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
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    rounded: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate queries and keys of one token per row, and write keys and values to slot `positions[b]` of row b.

    `qkv [B, (H + 2 H_kv) · D_h]`, `cos`, `sin` `[S, D_h / 2]`, `positions [B]`, `keys`, `values` `[B, H_kv, S, D_h]` ->
    queries `[B, H, D_h]` and the new caches. A row whose position is negative writes nothing. `rounded` is applied to
    new keys and values `[H_kv, D_h]`: what a cache in 8 bits makes of them.
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
            keys[row, :, positions[row]] = rounded(rotate(k, *angle)[row])
            values[row, :, positions[row]] = rounded(v[row])
    return rotate(q, *angle), keys, values


def decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None = None,
    rounded: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rotate_and_write`, then each row attends to its slots up to its position: `[B, H · D_h]` and the new caches.

    A row whose position is negative returns zeros.
    """
    q, keys, values = rotate_and_write(qkv, cos, sin, positions, keys, values, rounded)
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


def ragged_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    rows: Sequence[tuple[int, int, Sequence[int]]],
    keys: Tensor,
    values: Tensor,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """New tokens of rows one after the other, `[N, (H + 2 H_kv) · D_h]` -> `[N, H · D_h]` and the new caches.

    Args:
        qkv: not rotated.
        cos: by position, `[positions, D_h / 2]`.
        sin: the same.
        rows: of each, the position of its first new token, how many there are, and its pages.
        keys: `[pages, H_kv, P, D_h]`.
        values: the same.
        window: how many tokens back a token sees, itself included.
    """
    page = keys.shape[2]
    keys, values, out, first = keys.clone(), values.clone(), list[Tensor](), 0
    for start, count, pages in rows:
        for position, new in enumerate(qkv[first : first + count], start):
            held = [
                cache[list(pages)].transpose(0, 1).flatten(1, 2)[None] for cache in (keys, values)
            ]  # [1, H_kv, S, D_h]
            attended, *changed = decode_attention(new[None], cos, sin, torch.tensor([position]), *held, window=window)
            out.append(attended)
            for cache, of_row in zip((keys, values), changed, strict=True):
                cache[pages[position // page], :, position % page] = of_row[0, :, position]
        first += count
    return torch.cat(out), keys, values


UNUSABLE = -1
"""Stands for the token of a row without usable logits."""
MAX_CODES = 16_384
"""Limit of the kernel of `choose_codes`: the registers of a block hold no more logits."""


def kept_tokens(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return which tokens of `logits [V]` (divided by the temperature) may be chosen, bool `[V]`.

    The `top_k` largest (0: all), ties included; of these the likeliest until they reach the probability `top_p`: a
    token stays if those above it have less.
    """
    kept = torch.ones_like(logits, dtype=torch.bool)
    if 0 < top_k < len(logits):
        kept = logits >= logits.topk(top_k).values[-1]
    if top_p < 1:
        descending = logits[kept].sort(descending=True).values
        probabilities = descending.softmax(dim=-1)
        count = int((probabilities.cumsum(dim=-1) - probabilities < top_p).sum())
        kept = logits >= descending[max(count, 1) - 1]
    return kept


def carry_information(logits: Tensor) -> Tensor:
    """Return for each row of `[B, V]` whether a token can be chosen from it, `[B]` bool.

    It cannot if a value is NaN or infinite, or if all are equal: a norm whose input overflows returns zeros.
    """
    lowest, highest = logits.aminmax(dim=-1)  # NaN if any value is
    return (lowest > -torch.inf) & (highest < torch.inf) & ((lowest < highest) | (logits.shape[-1] == 1))


def allowed_tokens(bitmask: Tensor, vocabulary: int) -> Tensor:
    """int32 `[B, ⌈V / 32⌉]`, the lowest bit first -> bool `[B, V]`."""
    bits = bitmask[..., None] >> torch.arange(32, dtype=torch.int32, device=bitmask.device)
    return (bits & 1).bool().flatten(1)[:, :vocabulary]


def gumbel_noise(seed: int, position: int, vocabulary: int) -> Tensor:
    """Return `-log(-log(u))` for each token, float32 `[V]`: the same for equal seeds and positions, on any machine."""
    generator = np.random.Generator(np.random.Philox(key=(position << 64) | seed))
    return -torch.from_numpy(generator.standard_exponential(vocabulary, dtype=np.float32)).log()


def choose_tokens(
    logits: Tensor,
    ids: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    penalty: Tensor,
    presence: Tensor,
    frequency: Tensor,
    counts: Tensor,
    bias: Tensor,
    allowed: Tensor,
    ahead: int,
    draws: bool,
    uses_top_k: bool,
    uses_top_p: bool,
    penalizes: bool,
    masks: bool,
) -> Tensor:
    """Return a token for each row, int64 `[B]`, and write it to `ids`; `UNUSABLE` where the logits are.

    A row with a negative position is not in use: it is left as it is.

    Args:
        logits: `[B, V]` contiguous, any floating dtype.
        ids: int64 `[B]`, written.
        positions: int64 `[B]`; `ahead` is added.
        temperature: float32 `[B]`; 0 is greedy.
        top_k: int32 `[B]`; 0 keeps all tokens.
        top_p: float32 `[B]`; 1 keeps all tokens.
        seeds: int64 `[B]`.
        penalty: float32 `[B]`: positive logits of tokens in the answer are divided by it, negative ones multiplied
            (Keskar et al. 2019; transformers' `repetition_penalty`).
        presence: float32 `[B]`: then subtracted from the logits of tokens in the answer (OpenAI's `presence_penalty`).
        frequency: float32 `[B]`: the same as often as they are there (OpenAI's `frequency_penalty`).
        counts: int32 `[B, V]`: how often each token is in the answer; the new one is added if `penalizes`.
        bias: float32 `[B, V]`: added to the logits (OpenAI's `logit_bias`).
        allowed: int32 `[B, ⌈V / 32⌉]`: a bit for each token, the lowest first.
        ahead: how far after `positions` the new token is: 1, or 0 for the first one.
        draws: whether some temperature is above 0.
        uses_top_k: whether some row uses top-k.
        uses_top_p: whether some row uses top-p.
        penalizes: whether some row has a penalty or a bias.
        masks: whether some row allows some tokens only.
    """
    in_use = positions >= 0
    x = logits.float()
    usable = carry_information(x) & in_use
    if penalizes:
        scaled = torch.where(x < 0, x * penalty[:, None], x / penalty[:, None])
        x = torch.where(counts > 0, scaled - presence[:, None] - counts * frequency[:, None], x) + bias
    if masks:
        x = x.masked_fill(~allowed_tokens(allowed, x.shape[1]), -math.inf)
    chosen = x.argmax(dim=-1)
    if draws:
        for row in (usable & (temperature > 0)).nonzero()[:, 0].tolist():
            heat, position = temperature[row].item(), int(positions[row]) + ahead
            shifted = (x[row] - x[row].max()) / max(heat, 1e-37)
            kept = kept_tokens(shifted, int(top_k[row]) if uses_top_k else 0, top_p[row].item() if uses_top_p else 1.0)
            noise = gumbel_noise(int(seeds[row]), position, x.shape[1]).to(x.device)
            chosen[row] = (shifted + noise).masked_fill(~kept, -math.inf).argmax()
    ids.copy_(torch.where(in_use, chosen, ids))
    if penalizes:
        counts[in_use, chosen[in_use]] += 1
    positions += in_use * ahead
    return torch.where(usable, chosen, UNUSABLE)


def choose_codes(
    logits: Tensor,
    companions: Tensor,
    leaders: Tensor,
    guidance: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    ahead: int,
    draws: bool,
    uses_top_k: bool,
    uses_top_p: bool,
) -> tuple[Tensor, Tensor]:
    """Return a code for each row, and the same or `UNUSABLE`, int64 `[R]` both.

    The second is a code only for a row that leads a picture and whose logits, with guidance, can be used. The first is
    the code of the row's leader. Settings and positions are those of the leader too; nothing is written.

    Args:
        logits: `[R, K]` contiguous, any floating dtype.
        companions: int64 `[R]`: whose logits are u; the row itself without guidance.
        leaders: int64 `[R]`: whose code the row takes; itself or another.
        guidance: float32 `[R]`, of `u + guidance · (c - u)` (Ho and Salimans 2022).
        temperature: as the other arguments, see `choose_tokens`.
        top_k: the same.
        top_p: the same.
        seeds: the same.
        positions: the same, but they stay as they are.
        ahead: the same.
        draws: the same.
        uses_top_k: the same.
        uses_top_p: the same.
    """
    rows, vocabulary = logits.shape
    conditional = logits.float()
    unconditional = conditional[companions]
    guided = unconditional + guidance[:, None] * (conditional - unconditional)
    ids, zeros = torch.zeros_like(positions), torch.zeros(rows, vocabulary, device=logits.device)
    chosen = choose_tokens(
        guided, ids, positions.clone(), temperature, top_k, top_p, seeds, zeros[:, 0], zeros[:, 0], zeros[:, 0],
        zeros.int(), zeros, zeros.int(), ahead, draws, uses_top_k, uses_top_p, False, False,
    )  # fmt: skip
    leads = leaders == torch.arange(rows, device=logits.device)
    return ids[leaders], torch.where(leads, chosen, UNUSABLE)


def depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from a new code at `depth` to the codes of its position up to it.

    `qkv [R, 3 A W]`, `keys`, `values` `[R, A, D, W]` -> `[R, A W]` and the new caches.
    """
    q, k, v = qkv.unflatten(-1, (3, keys.shape[1], -1)).unbind(1)  # [R, A, W]
    keys, values = keys.clone(), values.clone()
    keys[:, :, depth], values[:, :, depth] = k, v
    seen = slice(depth + 1)
    scores = (keys[:, :, seen] @ q[..., None])[..., 0] / math.sqrt(q.shape[-1])
    return (scores.softmax(dim=-1)[..., None, :] @ values[:, :, seen]).flatten(1), keys, values


def rows(
    x: Tensor,
    added: Tensor | None = None,
    shift: Tensor | None = None,
    norm: tuple[Tensor, Tensor, float] | None = None,
    act: Callable[[Tensor], Tensor] | None = None,
    quantize: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return `y`, scales `[M, 1]` and `h` of `ops.rows.process_rows`; y is not rounded to codes.

    `norm` is weight, bias and eps; `quantize` is the largest code and the smallest range.
    """
    h = x if added is None else x + added
    t = h if shift is None else h + shift
    if norm is not None:
        t = F.layer_norm(t, t.shape[-1:], norm[0], norm[1], norm[2])
    if act is not None:
        t = act(t)
    if quantize is None:
        return t, None, h
    scales = t.abs().amax(-1, keepdim=True).clamp(min=quantize[1]) / quantize[0]
    return t / scales, scales, h


def full_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attention without a mask: `qkv [N, P, 3 D]` (q, k and v side by side) -> `[N, P, D]`."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
