"""A decode step of fused operators: the same function as `Decoder.forward` for one new token per row, on a GPU.

B rows, D width, H query heads, H_kv key/value heads, D_h head width
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from vila_core.language.linear_groups import LinearGroup, NormFusingGroup, group
from vila_core.ops.support import refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vila_core.config import DecoderConfig
    from vila_core.language.decoder import Block, Decoder
    from vila_core.language.paged_cache import PagedCache
    from vila_core.language.rope import Rotary
    from vila_core.ops.attention import NewTokens, Slots
    from vila_core.ops.ragged_attention import RaggedTokens

HEAD_WIDTHS = (64, 128)
ROTATIONS = 4096
"""Positions whose cosines and sines are computed at a time."""


def step_refusal(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a fused step cannot run a decoder with this config; None if it can."""
    if config.qk_norm:
        return "it does not normalize queries and keys (Qwen3)"
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "dynamic":
        return "it does not support dynamic rotary scaling, whose angles change with the length"
    if config.head_dim not in HEAD_WIDTHS:
        return f"it takes heads of {' or '.join(map(str, HEAD_WIDTHS))}, not {config.head_dim}"
    return refusal(device, dtype)


def warn_if_not_captured(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Warn if a decoder is on a GPU and its steps cannot be captured in CUDA graphs."""
    reason = step_refusal(config, device, dtype)
    if reason is not None and device.type == "cuda":
        warnings.warn(f"Decoding takes the slower path, without CUDA graphs: {reason}.", stacklevel=2)


@dataclass(frozen=True)
class Layer:
    """One block's weights."""

    input_norm: Tensor
    qkv: LinearGroup
    o: LinearGroup
    mlp_norm: Tensor
    gate_up: LinearGroup
    down: LinearGroup

    def groups(self) -> tuple[LinearGroup, ...]:
        """Return the groups in the order in which they run."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True)
class PagedView:
    """The pages of some rows, as the step's attention reads them.

    Attributes:
        cache: never moves.
        table: int32 `[B, pages of a row]` on the GPU.
        counters: int32 `[B · H_kv]` zeros.
    """

    cache: PagedCache
    table: Tensor
    counters: Tensor

    def slots(self, layer: int) -> Slots:
        """Return where the keys and values of a layer are."""
        from vila_core.ops.attention import Slots  # needs Triton

        return Slots(self.cache.keys[layer], self.cache.values[layer], self.table, self.cache.scales_of(layer))


class Adder(Protocol):
    """Adds what a block has computed to the hidden states, and norms them."""

    def __call__(
        self, change: Tensor, total: Tensor | None, weight: Tensor, eps: float, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`change`, `total` `[B, D]` -> the norm of their sum times `weight`, and the sum."""
        ...


class FusedLayers:
    """Neighboring blocks on one device: hidden states of one new token per row -> hidden states after them.

    Args:
        config: of a decoder of these blocks.
        blocks: their weights are read where they are.
        rotary: of the decoder.
        norm: weight of the final norm on the same device; None where other blocks follow.
        add: adds the results of attention and MLP, where they are not complete (see `exchange`).
        join: whether the weights of q, k and v may be moved next to one another (see `linear_groups.group`).
    """

    def __init__(
        self,
        config: DecoderConfig,
        blocks: Sequence[Block],
        rotary: Rotary,
        norm: Tensor | None,
        add: Adder | None = None,
        *,
        join: bool = False,
    ):
        self.config = config
        self.layers = [_layer(block, join=join) for block in blocks]
        self._norm = norm
        biased = config.attention_out_bias or config.mlp_bias
        self._fusing = None if biased or add is not None else _norm_fusing_layers(self.layers)
        self._add = add or _add_on_one_device
        self.device = blocks[0].input_layernorm.weight.device
        self.cos, self.sin = _rotations(config, rotary, self.device)

    def __call__(
        self, embeds: Tensor, positions: Tensor, cache: PagedView, following: LinearGroup | None = None
    ) -> Tensor:
        """`embeds [B, D]`, `positions` int64 `[B]` -> `[B, D]`. `following` reads the result (the head)."""
        if len(embeds) == 1 and self._fusing is not None:
            change, total = self._one_row(self._fusing, embeds, positions, cache, following)
        else:
            change, total = self._rows(embeds, positions, cache, following)
        return change + total if self._norm is None else self._add(change, total, self._norm, self._eps, positions)[0]

    @property
    def _eps(self) -> float:
        return self.config.rms_norm_eps

    def _rows(
        self, embeds: Tensor, positions: Tensor, cache: PagedView, following: LinearGroup | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the last MLP adds, and what it adds it to."""
        from vila_core.ops.attention import attend

        change, total = embeds, None
        for index, layer in enumerate(self.layers):
            last = index + 1 == len(self.layers)
            add = self._add if index else _add_on_one_device  # embeddings are complete
            x, total = add(change, total, layer.input_norm, self._eps, positions)
            qkv = layer.qkv(x, layer.o)  # [B, (H + 2 H_kv) · D_h]
            slots, following_two = cache.slots(index), (layer.o.first_read, layer.gate_up.first_read)
            heads = attend(self._new_tokens(qkv, positions), slots, cache.counters, following_two)
            x, total = self._add(layer.o(heads, layer.gate_up), total, layer.mlp_norm, self._eps, positions)
            change = layer.down(layer.gate_up.swiglu(x, layer.down), following if last else self.layers[index + 1].qkv)
        assert total is not None
        return change, total

    def read(self, embeds: Tensor, new: RaggedTokens, cache: PagedCache, last: Tensor, *, long: bool = True) -> Tensor:
        """Read several new tokens of each row, one row after the other.

        Args:
            embeds: `[N, D]`.
            new: which tokens they are.
            cache: where their keys and values are written.
            last: int64 `[rows]`: which of the N tokens is the last of each row.
            long: whether some see many others (see `ops.ragged_attention.attend`).

        Returns:
            their hidden states after the final norm, `[rows, D]`.
        """
        from vila_core.ops.norm import add_rms_norm
        from vila_core.ops.ragged_attention import attend

        eps, window = self.config.rms_norm_eps, self.config.sliding_window or 0
        change, total = embeds, None
        for index, layer in enumerate(self.layers):
            x, total = add_rms_norm(change, total, layer.input_norm, eps)
            keys, values = cache.keys[index], cache.values[index]
            heads = attend(layer.qkv(x), self.cos, self.sin, new, keys, values, window, long=long)
            x, total = add_rms_norm(layer.o(heads), total, layer.mlp_norm, eps)
            change = layer.down(layer.gate_up.swiglu(x))
        assert total is not None, "a decoder has layers"
        assert self._norm is not None, "a whole decoder ends with a norm"
        return add_rms_norm(change.index_select(0, last), total.index_select(0, last), self._norm, eps)[0]

    def _new_tokens(self, qkv: Tensor, positions: Tensor) -> NewTokens:
        from vila_core.ops.attention import NewTokens

        return NewTokens(qkv, self.cos, self.sin, positions, self.config.sliding_window or 0)

    def _one_row(
        self,
        layers: list[FusingLayer],
        embeds: Tensor,
        positions: Tensor,
        cache: PagedView,
        following: LinearGroup | None,
    ) -> tuple[Tensor, Tensor]:
        """`_rows` for one row: linears do all norms but the first and the last, and merge the attention's parts."""
        from vila_core.ops.attention import attend, attend_in_parts
        from vila_core.ops.norm import add_rms_norm

        eps = self._eps
        x, total = add_rms_norm(embeds, None, self.layers[0].input_norm, eps)
        qkv = layers[0].qkv(x, layers[0].o)
        for index, layer in enumerate(layers):
            run = attend_in_parts if layer.o.merges_heads(self.config.head_dim) else attend
            following_two = layer.o.first_read, layer.gate_up.first_read
            heads = run(self._new_tokens(qkv, positions), cache.slots(index), cache.counters, following_two)
            normed = layer.o.add(heads, total, layer.mlp_norm, layer.mlp_norm_scale, eps, layer.gate_up)
            product = layer.gate_up.finish(normed, layer.down, swiglu=True)
            total = normed.total
            if index + 1 == len(layers):
                return layer.down(product, following), total
            after = layers[index + 1]
            normed = layer.down.add(product, total, after.input_norm, after.input_norm_scale, eps, after.qkv)
            qkv = after.qkv.finish(normed, after.o)
            total = normed.total
        raise AssertionError("a decoder has layers")


class FusedStep(FusedLayers):
    """Embeddings of one new token per row -> hidden states after the final norm.

    Args:
        decoder: q, k and v of a block become parts of one tensor; other weights are read where they are.
    """

    def __init__(self, decoder: Decoder):
        blocks = [cast("Block", block) for block in decoder.model.layers]
        super().__init__(decoder.config, blocks, decoder.model.rotary, decoder.model.norm.weight, join=True)


def _add_on_one_device(
    change: Tensor, total: Tensor | None, weight: Tensor, eps: float, positions: Tensor
) -> tuple[Tensor, Tensor]:
    from vila_core.ops.norm import add_rms_norm

    del positions
    return add_rms_norm(change, total, weight, eps)


@dataclass(frozen=True)
class FusingLayer:
    """One block's weights, for linears that do the norms; norm weights are divided by their scales."""

    input_norm: Tensor
    input_norm_scale: float
    qkv: NormFusingGroup
    o: NormFusingGroup
    mlp_norm: Tensor
    mlp_norm_scale: float
    gate_up: NormFusingGroup
    down: NormFusingGroup


def _norm_fusing_layers(layers: list[Layer]) -> list[FusingLayer] | None:
    """Return the layers with their norms in the linears; None if some linear does not support that."""
    made: list[FusingLayer] = []
    for layer in layers:
        groups = [g for g in layer.groups() if isinstance(g, NormFusingGroup) and g.fuses_norms()]
        if len(groups) < len(layer.groups()):
            return None
        qkv, o, gate_up, down = groups
        input_scale, mlp_scale = (max(w.abs().max().item(), 1e-6) for w in (layer.input_norm, layer.mlp_norm))
        input_norm, mlp_norm = layer.input_norm / input_scale, layer.mlp_norm / mlp_scale
        made.append(FusingLayer(input_norm, input_scale, qkv, o, mlp_norm, mlp_scale, gate_up, down))
    return made


def _layer(block: Block, *, join: bool) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    return Layer(
        block.input_layernorm.weight,
        group((attention.q_proj, attention.k_proj, attention.v_proj), join=join),
        group((attention.o_proj,)),
        block.post_attention_layernorm.weight,
        group((mlp.gate_proj, mlp.up_proj)),
        group((mlp.down_proj,)),
    )


def _rotations(config: DecoderConfig, rotary: Rotary, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of every position, float32 `[S, D_h / 2]`."""
    slots, half = config.max_length, config.head_dim // 2
    cos = torch.empty(slots, half, device=device)
    sin = torch.empty_like(cos)
    for start in range(0, slots, ROTATIONS):
        positions = torch.arange(start, min(start + ROTATIONS, slots), device=device)[None]
        for table, values in zip((cos, sin), rotary(positions, torch.float32), strict=True):
            table[start : start + ROTATIONS] = values[0, 0, :, :half]
    return cos, sin
