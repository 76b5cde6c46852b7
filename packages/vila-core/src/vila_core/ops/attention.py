"""Attention of one new token per row to the KV cache, rotary embedding and cache write included.

B rows, H query heads, H_kv key/value heads, G = H / H_kv, D_h head width, S slots, P slots of a page

    out[b, h] = softmax(rotate(q)[b, h] · K[b, h // G]ᵀ / sqrt(D_h)) V[b, h // G]

Slot s of row b is slot s of the row's own buffer, or slot s % P of page `table[b, s // P]`. Rows have lengths of their
own, read on the device: a captured CUDA graph serves any length. Reference: `reference.decode_attention`. How it works:
`attention_kernel`.
"""

# Triton has no types: a kernel's arguments and its launch are not checked. Compile-time constants are in capitals.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from vila_core.ops.attention_kernel import decode_attention_kernel
from vila_core.ops.support import launches_early

BLOCK = 64
WARPS = 4
STAGES = 3
PREFETCHED_BYTES = 1 << 20
HEAD_WIDTHS = (64, 128)
MAX_SPLITS = 64
MAX_PARTS = 8
"""Parts that the next linear can merge: the columns of its tensor core product."""
MERGED = 16
LOG2_E = 1.4426950408889634
MULTIPROCESSORS = 132
"""Blocks that fill a large GPU; smaller ones run them in turns."""


@dataclass(frozen=True)
class Slots:
    """Where one layer's keys and values are.

    Attributes:
        keys, values: `[B, H_kv, S, D_h]`, or with a table `[pages, H_kv, P, D_h]`, P a multiple of 64.
            In 8 bits, uint8 codes of `eight_bits`.
        table: int32 `[B, pages of a row]`: which pages a row has.
        scales: of keys and values in 8 bits, bfloat16, one for each head of a slot.
    """

    keys: Tensor
    values: Tensor
    table: Tensor | None = None
    scales: tuple[Tensor, Tensor] | None = None

    @property
    def num_kv_heads(self) -> int:
        return self.keys.shape[1]

    def strides(self) -> tuple[int, int]:
        """Return how far apart rows (or pages) and heads are."""
        assert self.keys.stride() == self.values.stride()
        assert self.keys.stride(2) == self.keys.shape[3]
        assert self.keys.stride(3) == 1
        for scales in self.scales or ():
            assert [stride * self.keys.shape[3] for stride in scales.stride()] == list(self.keys.stride()[:3])
        return self.keys.stride(0), self.keys.stride(1)

    def page(self) -> int:
        """Return how many slots a page has; 0 without pages."""
        if self.table is None:
            return 0
        page = self.keys.shape[2]
        assert page % BLOCK == 0, f"pages of {page} slots; the kernel takes multiples of {BLOCK}"
        return page


@dataclass(frozen=True)
class NewTokens:
    """One new token of each row.

    Attributes:
        qkv: `[B, (H + 2 H_kv) · D_h]`, rows contiguous, not rotated.
        cos, sin: float32 `[S, D_h / 2]`, by position.
        positions: int64 `[B]`; a row whose position is negative writes nothing and returns zeros.
        window: how many tokens back a token sees, itself included; 0 sees all.
    """

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    positions: Tensor
    window: int = 0


@dataclass(frozen=True)
class SplitHeads:
    """The attention of one row in parts: `out[h] = Σ_p w[h, p] parts[p, h]`, w the softmax of `logs` to the base 2.

    Attributes:
        parts: `[P, H · D_h]`, of which the first `parts_left(position, window)` count.
        logs: float32 `[H, P]`.
        head_dim: D_h.
        position: int64 `[1]`, of the token.
        window: of the attention.
    """

    parts: Tensor
    logs: Tensor
    head_dim: int
    position: Tensor
    window: int


def num_splits(rows: int, num_kv_heads: int) -> int:
    """Return into how many parts at most a row's slots are divided: as many as fill the GPU twice."""
    filling = max(1, 2 * MULTIPROCESSORS // (rows * num_kv_heads))
    return min(MAX_SPLITS, 1 << (filling - 1).bit_length())


def attend(new: NewTokens, slots: Slots, counters: Tensor, following: Sequence[Tensor | None] = ()) -> Tensor:
    """Write the new tokens to the cache and attend to it: `[B, H · D_h]`.

    Args:
        new: the tokens.
        slots: the cache.
        counters: int32 `[B · H_kv]` zeros, which the kernel leaves as zeros.
        following: what the next two products read first, to be prefetched into L2.
    """
    return _launch(new, slots, counters, following, parts=0)[0]


def attend_in_parts(
    new: NewTokens, slots: Slots, counters: Tensor, following: Sequence[Tensor | None] = ()
) -> SplitHeads:
    """`attend` for one row, without merging the parts if they are few."""
    parts = min(MAX_PARTS, num_splits(1, slots.num_kv_heads))
    out, logs = _launch(new, slots, counters, following, parts=parts)
    return SplitHeads(out, logs, 2 * new.cos.shape[-1], new.positions, new.window)


def _launch(
    new: NewTokens, slots: Slots, counters: Tensor, following: Sequence[Tensor | None], *, parts: int
) -> tuple[Tensor, Tensor]:
    qkv, rows, width, kv_heads = new.qkv, len(new.positions), 2 * new.cos.shape[-1], slots.num_kv_heads
    num_heads = qkv.shape[1] // width - 2 * kv_heads
    group = num_heads // kv_heads
    assert width in HEAD_WIDTHS, f"heads of {width}; the kernel takes {HEAD_WIDTHS}"
    assert qkv.stride(1) == 1
    assert len(counters) >= rows * kv_heads
    assert rows <= 1 or not parts
    out = qkv.new_empty(max(parts, rows), num_heads * width)
    logs = qkv.new_empty(num_heads, parts, dtype=torch.float32)
    splits = num_splits(rows, kv_heads)
    unmerged = qkv.new_empty(rows * num_heads * splits, width, dtype=torch.float32)
    sums = qkv.new_empty(rows * num_heads * splits, 2, dtype=torch.float32)
    pdl = launches_early(qkv.device)
    weights = [weight for weight in following if weight is not None] if pdl else []
    share = [min(PREFETCHED_BYTES, weight.nbytes) // (rows * kv_heads * splits) // 16 * 16 for weight in weights]
    fetched = [weight.view(torch.uint8) for weight in weights] + [out, out]
    table, scales = slots.table, slots.scales
    assert (scales is not None) == (slots.keys.dtype == torch.uint8)
    if rows:
        decode_attention_kernel[(rows * kv_heads, splits)](
            qkv, new.cos, new.sin, new.positions, slots.keys, slots.values, *(scales or (logs, logs)),
            new.positions if table is None else table, unmerged, sums, counters, out, logs, *fetched[:2],
            *[*share, 0, 0][:2], qkv.stride(0), *slots.strides(), 0 if table is None else table.stride(0),
            slots.page(), new.window, kv_heads, LOG2_E / width**0.5, GROUP=group,
            QUERIES=max(16, triton.next_power_of_2(group)), MERGED_QUERIES=triton.next_power_of_2(group),
            MERGED=MERGED, WIDTH=width, BLOCK=BLOCK, SPLITS=splits, PAGED=table is not None,
            QUANTIZED=scales is not None, INLINE=qkv.is_cuda, PDL=pdl, PREFETCH=bool(weights), PARTS=parts,
            WARPS=WARPS, num_warps=WARPS, num_stages=STAGES,
            **({"launch_pdl": True} if pdl else {}),
        )  # fmt: skip
    return out, logs


def decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    counters: Tensor,
    table: Tensor | None = None,
    window: int = 0,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`attend` as an operator of PyTorch, for `torch.compile`; see `NewTokens` and `Slots` for the arguments."""
    key_scales, value_scales = scales or (None, None)
    return _decode_attention(
        qkv, cos, sin, positions, keys, values, key_scales, value_scales, counters, table, window
    )  # fmt: skip


@torch.library.custom_op(
    "vila::decode_attention", mutates_args=("keys", "values", "key_scales", "value_scales", "counters")
)
def _decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
    counters: Tensor,
    table: Tensor | None,
    window: int,
) -> Tensor:
    scales = None if key_scales is None or value_scales is None else (key_scales, value_scales)
    return attend(NewTokens(qkv, cos, sin, positions, window), Slots(keys, values, table, scales), counters)


@_decode_attention.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, *others: object) -> Tensor:
    del sin, positions, others
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 4 * keys.shape[1] * cos.shape[-1])
