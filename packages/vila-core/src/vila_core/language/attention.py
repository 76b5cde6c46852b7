"""Attention as a function that a model is given, so that another implementation can replace it.

B batch, T new tokens, S keys, H query heads, H_kv key/value heads, D_h head width
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vila_core.language import cudnn_packed
from vila_core.language.cache import SlotCache
from vila_core.language.packed import PackedSequences
from vila_core.ops.support import refusal

LONG = 12_288
"""From this many tokens on, cuDNN's attention is worth the 40 ms that it takes to plan for a new length."""

VARLEN_DTYPES = (torch.float16, torch.bfloat16)

OTHER_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of attention that all layers of a forward pass share.

    Attributes:
        mask: which keys each token sees, bool `[B or 1, 1, T, S]`. None: causal if T = S, all keys if T = 1.
        positions: of the new tokens, int64 `[B, T]`, or `[1, T]` for equal rows; None if the function needs none.
        cache: where their keys and values are written; None keeps nothing.
        reads_cache: whether they attend to the cache; if not, only to each other.
        is_tail: whether the new tokens are the last ones of what they attend to, and see all before them.
        packed: where the sequences of a packed row begin; `mask` and `cache` are then None.
        window: how many tokens back a token of a packed row sees, itself included; None sees all.
    """

    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    cache: SlotCache | None = None
    reads_cache: bool = False
    is_tail: bool = False
    packed: PackedSequences | None = None
    window: int | None = None


class AttentionFunction(Protocol):
    """Attention of one layer: writes to the cache, attends, and returns one vector per query.

    Variable-length, paged or sequence-parallel attention are other functions of this type.
    """

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: AttentionInputs, layer: int
    ) -> torch.Tensor:
        """`q [B, H, T, D_h]`, new `k`, `v` `[B, H_kv, T, D_h]` -> `[B, H, T, D_h]`."""
        ...


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, inputs: AttentionInputs, layer: int) -> torch.Tensor:
    """Attend with PyTorch's scaled dot product attention; see `AttentionFunction`."""
    if inputs.packed is not None:
        return attend_packed(q, k, v, inputs.packed, inputs.window)
    if inputs.cache is not None:
        assert inputs.positions is not None, "a cache is addressed by positions"
        k, v = inputs.cache.write(layer, inputs.positions, k, v)
        if inputs.reads_cache:
            k, v = inputs.cache.read(layer)  # [B, H_kv, S, D_h]
    if inputs.is_tail and q.is_cuda:
        return attend_as_tail(q, k, v)
    return attend(q, k, v, inputs.mask)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`q [B, H, T, D_h]`, `k`, `v` `[B, H_kv, S, D_h]` and a mask of `AttentionInputs` -> `[B, H, T, D_h]`."""
    batch, heads, new, head_dim = q.shape
    groups = k.shape[1]
    grouped = groups != heads
    if new == 1:
        # The queries of a group become rows of one head: a plain kernel reads each key once, with or without a mask.
        out = F.scaled_dot_product_attention(q.reshape(batch, groups, -1, head_dim), k, v, attn_mask=mask)
        return out.reshape(q.shape)
    if mask is None and q.is_cuda and new >= LONG:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *OTHER_BACKENDS], set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if grouped and q.is_cuda:
        # On CUDA the fused kernel that takes a mask does not support groups; the fallback would materialize all scores.
        k, v = k.repeat_interleave(heads // groups, dim=1), v.repeat_interleave(heads // groups, dim=1)
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def attend_as_tail(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`q [B, H, T, D_h]` of the last T tokens of `k`, `v` `[B, H_kv, S, D_h]` -> `[B, H, T, D_h]`."""
    if refusal(q.device, q.dtype) is not None:
        positions = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)[None]
        return attend(q, k, v, visibility(positions, k.shape[2], None))
    # `scaled_dot_product_attention` aligns queries with the first keys; this operator aligns them with the last, as
    # torch.nn.attention.bias.causal_lower_right does, whose import takes seconds.
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False)[0]


def attend_packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedSequences, window: int | None
) -> torch.Tensor:
    """Attend within each sequence, causally.

    `q [1, H, T, D_h]`, `k`, `v` `[1, H_kv, T, D_h]` -> `[1, H, T, D_h]`. On a GPU in 16 bits, one kernel reads all
    sequences; elsewhere they are attended to one by one. A token sees the `window` last tokens, itself included.
    """
    if q.is_cuda and q.dtype in VARLEN_DTYPES:
        return _attend_varlen(q, k, v, packed, window)
    out: list[torch.Tensor] = []
    for q_one, k_one, v_one in zip(*(x.split(packed.lengths, dim=2) for x in (q, k, v)), strict=True):
        length = q_one.shape[2]
        own = torch.arange(length, device=q.device)[None]
        mask = None if window is None or window >= length else visibility(own, length, window)
        out.append(attend(q_one, k_one, v_one, mask))
    return torch.cat(out, dim=2)


def _attend_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: PackedSequences, window: int | None
) -> torch.Tensor:
    # Squeezed, not indexed: the gradient of an index is a copy into zeros.
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (q, k, v))  # [T, H, D_h], [T, H_kv, D_h] twice
    if window is None and (out := cudnn_packed.attend(q, k, v, packed)) is not None:
        return out.transpose(0, 1)[None]
    from torch.nn.attention.varlen import varlen_attn  # imported here because it takes a second

    # PyTorch 2.11 does not check the number of heads; its kernel takes groups, forwards and backwards.
    grouped = q.shape[1] != k.shape[1] and _varlen_takes_groups()
    groups: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    longest, back = max(packed.lengths), -1 if window is None else window - 1
    out = varlen_attn(q, k, v, packed.bounds, packed.bounds, longest, longest, window_size=(back, 0), **groups)
    assert isinstance(out, torch.Tensor)
    return out.transpose(0, 1)[None]


@cache
def _varlen_takes_groups() -> bool:
    """Whether this PyTorch (2.12 and later) has an option for fewer key/value heads than query heads."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def attention_inputs(
    num_tokens: int, positions: torch.Tensor | None, cache: SlotCache | None, window: int | None, device: torch.device
) -> AttentionInputs:
    """Work out positions and mask of a forward pass.

    Args:
        num_tokens: T.
        positions: of the new tokens, `[B or 1, T]`; None for 0 … T - 1, the start of a sequence.
        cache: of the model; it is read only if `positions` are given.
        window: how many tokens back a token sees, itself included; None sees all.
        device: of the model.
    """
    reads_cache = cache is not None and positions is not None
    if positions is None:
        positions = torch.arange(num_tokens, device=device)[None]
    if not reads_cache:
        own = torch.arange(num_tokens, device=device)[None]  # tokens attend by their order, whatever their positions
        mask = None if window is None or window >= num_tokens else visibility(own, num_tokens, window)
        return AttentionInputs(mask, positions, cache)
    assert cache is not None
    num_slots = cache.num_slots
    # One new token per row, in equal rows that end where the cache is read to: every slot is visible.
    sees_all = positions.shape == (1, 1) and cache.limit is not None and (window is None or window >= num_slots)
    # Equal rows of several tokens that end there are its last ones; a GPU has a kernel for that.
    in_window = window is None or window >= num_slots
    is_tail = device.type == "cuda" and len(positions) == 1 and num_tokens > 1 and cache.limit is not None and in_window
    mask = None if sees_all or is_tail else visibility(positions, num_slots, window)
    return AttentionInputs(mask, positions, cache, reads_cache=True, is_tail=is_tail)


def visibility(positions: torch.Tensor, num_slots: int, window: int | None) -> torch.Tensor:
    """Return which slots a token at each of `positions` `[B or 1, T]` sees, bool `[B or 1, 1, T, S]`."""
    query = positions[:, None, :, None]
    key = torch.arange(num_slots, device=positions.device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)
