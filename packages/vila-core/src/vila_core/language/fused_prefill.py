"""A forward pass over many tokens with fused operators: the same function as `DecoderModel.forward`, on an NVIDIA GPU.

B rows, T tokens, D width, H query heads, H_kv key/value heads, D_h head width

Linears and attention stay what they are; norms with their residual sums, rotary embedding and SwiGLU are one kernel
each, which reads and writes its inputs once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vila_core.language.attention import AttentionFunction, AttentionInputs
from vila_core.ops.support import DTYPES, refusal

if TYPE_CHECKING:
    from vila_core.language.decoder import Attention, Block, DecoderModel

HEAD_WIDTHS = (64, 128)
MIN_TOKENS = 1024
"""With fewer tokens, launching the kernels takes longer than they do, and these operators take longer to launch."""


def takes(model: DecoderModel, x: Tensor) -> bool:
    """Return whether `run` is to read embeddings `x`: many, not in training, where Triton runs, and without hooks."""
    return (
        x.is_cuda
        and x.shape[0] * x.shape[1] >= MIN_TOKENS
        and x.dtype in DTYPES
        and not torch.is_grad_enabled()
        and _runs_on(x.device, x.dtype, model.config.head_dim)
        and not is_watched(model)
    )


def is_watched(model: DecoderModel) -> bool:
    """Return whether a module that `run` does not call has a hook; linears are called."""
    blocks = [cast("Block", layer) for layer in model.layers]
    parts = [
        part
        for block in blocks
        for part in (block, block.self_attn, block.mlp, block.input_layernorm, block.post_attention_layernorm)
    ]
    return any(part._forward_hooks or part._forward_pre_hooks for part in parts)  # pyright: ignore[reportPrivateUsage]


@cache
def _runs_on(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    # Loading a model warns where Triton is missing (see `warn_if_not_captured`).
    return head_dim in HEAD_WIDTHS and refusal(device, dtype) is None


def run(
    model: DecoderModel,
    x: Tensor,
    rotation: tuple[Tensor, Tensor],
    inputs: AttentionInputs,
    attention: AttentionFunction,
) -> Tensor:
    """Embeddings `[B, T, D]` -> hidden states after the final norm, `[B, T, D]`."""
    from vila_core.ops.norm import add_rms_norm  # needs Triton
    from vila_core.ops.prefill import silu_multiply

    rows, tokens, width = x.shape
    cos, sin = (angle.contiguous() for angle in rotation)
    change, total = x.reshape(-1, width), None
    for layer in model.layers:
        block = cast("Block", layer)
        norm = block.input_layernorm
        hidden, total = add_rms_norm(change, total, norm.weight, norm.eps)
        attended = _attend(block.self_attn, hidden.view(rows, tokens, width), cos, sin, inputs, attention)
        norm = block.post_attention_layernorm
        hidden, total = add_rms_norm(attended.flatten(0, 1), total, norm.weight, norm.eps)
        gate, up = block.mlp.gate_proj(hidden), block.mlp.up_proj(hidden)
        change = block.mlp.down_proj(silu_multiply(gate, up))
    return add_rms_norm(change, total, model.norm.weight, model.norm.eps)[0].view(rows, tokens, width)


def _attend(
    layer: Attention, x: Tensor, cos: Tensor, sin: Tensor, inputs: AttentionInputs, attention: AttentionFunction
) -> Tensor:
    """`[B, T, D]` -> `[B, T, D]`."""
    from vila_core.ops.prefill import rotate_heads

    heads = (*x.shape[:2], -1, layer.head_dim)
    q, k, v = layer.q_proj(x).view(heads), layer.k_proj(x).view(heads), layer.v_proj(x).view(heads)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    rotate_heads(q, k, cos, sin)
    out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), inputs, layer.layer)  # [B, H, T, D_h]
    return layer.o_proj(out.transpose(1, 2).flatten(2))
