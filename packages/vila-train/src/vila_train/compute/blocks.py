"""Recompute activations in the backward pass instead of keeping them, and compile layers.

A block of the decoder is computed in two segments, with attention between them:

    x -> norm, projections, rotary -> q, k, v -> attention -> o -> projection, norm, MLP -> x

"full" keeps only x. "linears" keeps q, k, v, o and what attention keeps, and recomputes both segments, so that
attention, whose cost grows with the square of the length, runs once. Segments are compiled without attention, whose
inputs (lengths of sequences) differ with each row.

Dimensions as in `vila_core.language.decoder`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vila_core.language.attention import AttentionFunction, AttentionInputs, sdpa
from vila_core.language.decoder import Block
from vila_core.model import VilaModel
from vila_train.compute.layers import repeated_layers

Recomputed = Literal["none", "full", "linears"]
Function = Callable[..., Any]


def prepare_layers(network: VilaModel, recomputed: Recomputed, *, compiled: bool) -> None:
    """Replace the `forward` of each layer of the tower and the language model; parameters and names stay.

    Args:
        network: the model; it may have adapters.
        recomputed: what is computed again in the backward pass. Layers other than the decoder's have no segments:
            "linears" recomputes them in full.
        compiled: compile layers with `torch.compile`, for any number of tokens.
    """
    if recomputed == "none" and not compiled:
        return
    compile = partial(torch.compile, dynamic=True) if compiled else _as_it_is
    before, after = compile(before_attention), compile(after_attention)
    for layer in repeated_layers(network):
        if isinstance(layer, Block):
            forward: Function = Segments(layer, before, after, recomputed == "linears")
        else:
            forward = compile(layer.forward)
        if recomputed == "full" or (recomputed == "linears" and not isinstance(layer, Block)):
            forward = partial(_recompute, forward)
        layer.forward = forward


def before_attention(block: Block, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`[B, T, D]` -> rotated q `[B, H, T, D_h]`, rotated k and v `[B, H_kv, T, D_h]`."""
    return block.self_attn.heads(block.input_layernorm(x), (cos, sin))


def after_attention(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """`x [B, T, D]` and `attended [B, H, T, D_h]` -> `[B, T, D]`."""
    x = x + block.self_attn.merge(attended)
    return x + block.mlp(block.post_attention_layernorm(x))


@dataclass(frozen=True)
class Segments:
    """`Block.forward` in segments.

    Attributes:
        block: whose parameters are used.
        before, after: `before_attention` and `after_attention`, perhaps compiled.
        recomputed: whether both are computed again in the backward pass.
    """

    block: Block
    before: Function
    after: Function
    recomputed: bool

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        inputs: AttentionInputs,
        attention: AttentionFunction = sdpa,
    ) -> Tensor:
        call = _recompute if self.recomputed else _call
        q, k, v = call(self.before, self.block, x, *rotation)
        attended = attention(q, k, v, inputs, self.block.self_attn.layer)
        return call(self.after, self.block, x, attended)


def _call(function: Function, *args: Any) -> Any:
    return function(*args)


def _recompute(function: Function, *args: Any, **kwargs: Any) -> Any:
    learns = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
    if not learns:  # in a frozen tower, `checkpoint` would keep the inputs of all layers
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


def _as_it_is(function: Function) -> Function:
    return function
