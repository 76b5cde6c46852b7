"""Recompute activations in the backward pass instead of keeping them, and fuse what lies between products.

A block of the decoder is computed in two segments, with attention between them:

    x -> norm, projections, rotary -> q, k, v -> attention -> o -> projection, norm, MLP -> x

"full" keeps only x. "linears" keeps q, k, v, o and what attention keeps, and recomputes both segments, so that
attention, whose cost grows with the square of the length, runs once.

The functions between products (`fused`) are compiled, not whole layers: their graphs are small, so that the first step
waits seconds, not minutes, and no adapter or sharded weight is traced.

Dimensions as in `vila_core.language.decoder`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vila_core.language.attention import AttentionFunction, AttentionInputs, sdpa
from vila_core.language.decoder import Block
from vila_core.model import VilaModel
from vila_train.compute.fused import Fused
from vila_train.compute.layers import separate_layers
from vila_train.compute.lora_blocks import LoraBlock
from vila_train.compute.lora_group import LoraGroup

Recomputed = Literal["none", "full", "linears"]
Function = Callable[..., Any]


def prepare_layers(
    network: VilaModel, recomputed: Recomputed, *, compiled: bool, groups: Mapping[nn.Module, LoraGroup] = {}
) -> None:
    """Replace the `forward` of each layer of the tower and the language model; parameters and names stay.

    Args:
        network: the model; it may have adapters.
        recomputed: what is computed again in the backward pass. Layers other than the decoder's have no segments:
            "linears" recomputes them in full.
        compiled: compile what lies between the products of the decoder's layers; run those under LoRA by hand.
        groups: linears under LoRA, of `add_in_place`.
    """
    if recomputed == "none" and not compiled:
        return
    fused = Fused.compiled() if compiled else Fused()
    for layer in separate_layers(network):
        forward: Function = layer.forward
        if isinstance(layer, Block):
            lora = LoraBlock.of(layer, groups) if compiled else None
            forward = Segments(layer, fused, recomputed == "linears", lora)
        if recomputed == "full" or (recomputed == "linears" and not isinstance(layer, Block)):
            forward = partial(_recompute, forward)
        layer.forward = forward


@dataclass(frozen=True)
class Segments:
    """`Block.forward` in segments.

    Attributes:
        block: whose parameters are used.
        fused: what lies between products.
        recomputed: whether both segments are computed again in the backward pass.
        lora: what computes packed rows instead, if the block fits.
    """

    block: Block
    fused: Fused
    recomputed: bool
    lora: LoraBlock | None = None

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        inputs: AttentionInputs,
        attention: AttentionFunction = sdpa,
    ) -> Tensor:
        call = _recompute if self.recomputed else _call
        if self.lora is not None and self.lora.takes(x, inputs):
            x, q, k, v = call(self.lora.before, x, *rotation)
            return call(self.lora.after, x, attention(q, k, v, inputs, self.block.self_attn.layer))
        q, k, v = call(self._before, x, *rotation)
        attended = attention(q, k, v, inputs, self.block.self_attn.layer)
        return call(self._after, x, attended)

    def _before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, D]` -> rotated q `[B, H, T, D_h]`, rotated k and v `[B, H_kv, T, D_h]`."""
        norm, attention = self.block.input_layernorm, self.block.self_attn
        q, k, v = attention.unrotated(self.fused.norm(x, norm.weight, norm.eps))
        return self.fused.rotate(q, cos, sin), self.fused.rotate(k, cos, sin), v

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x [B, T, D]` and `attended [B, H, T, D_h]` -> `[B, T, D]`."""
        norm, mlp = self.block.post_attention_layernorm, self.block.mlp
        x, hidden = self.fused.add_norm(x, self.block.self_attn.merge(attended), norm.weight, norm.eps)
        return x + cast("Tensor", mlp.down_proj(self.fused.swiglu(*mlp.gate_and_up(hidden))))


def _call(function: Function, *args: Any) -> Any:
    return function(*args)


def _recompute(function: Function, *args: Any, **kwargs: Any) -> Any:
    learns = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
    if not learns:  # in a frozen tower, `checkpoint` would keep the inputs of all layers
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)
