"""Activations that autograd keeps of a layer, found by running the layer on the meta device.

T tokens (of a tower: tiles times patches), D width, I width of the MLP, H query heads, H_kv key heads, D_h head width
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from vila_core.config import DecoderConfig
from vila_core.language.attention import AttentionInputs
from vila_core.language.decoder import Block


def kept_by_block(block: Block, config: DecoderConfig, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes that a decoder block keeps of `tokens` tokens for its backward pass."""
    layer = cast("Block", on_meta(block, dtype))
    x = torch.empty(1, tokens, config.hidden_size, dtype=dtype, device="meta", requires_grad=True)
    rotation = torch.empty(1, 1, tokens, config.head_dim, dtype=dtype, device="meta")
    return kept(
        lambda: type(block).forward(layer, x, (rotation, rotation), AttentionInputs(), attend_heads),
        [*layer.parameters(), rotation],
    )


def kept_by_layer(layer: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return the bytes that a layer from one tensor of `shape` to another keeps for its backward pass."""
    copied = on_meta(layer, dtype)
    x = torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)
    return kept(lambda: type(layer).forward(copied, x), [*copied.parameters()])


def compiled_block(config: DecoderConfig, tokens: int, itemsize: int, *, learns: bool) -> int:
    """Return the bytes that a block with compiled norms, rotary embedding and SwiGLU keeps.

    These keep their inputs; products keep theirs if their weights or adapters learn. Attention keeps q, k, v and its
    result.
    """
    heads = (config.num_attention_heads * 2 + config.num_key_value_heads * 2) * config.head_dim
    widths = 2 * config.hidden_size + heads + 2 * config.intermediate_size
    if learns:
        widths += 2 * config.hidden_size + config.intermediate_size
    return tokens * (widths * itemsize + 4 * config.num_attention_heads)


def attention_inputs_and_result(config: DecoderConfig, tokens: int, itemsize: int) -> int:
    """Return the bytes of q, k, v, the result and its statistics: what attention keeps."""
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    return tokens * (heads * config.head_dim * itemsize + 4 * config.num_attention_heads)


def kept(forward: Callable[[], Any], others: Sequence[Tensor] = ()) -> int:
    """Return the bytes of all tensors that autograd saves in `forward`, each storage once, without `others`."""
    without = {tensor.untyped_storage()._cdata for tensor in others}  # pyright: ignore[reportPrivateUsage]
    saved: list[Tensor] = []  # held, so that no storage takes the place of another
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor), _FlashAttention():
        result = forward()
    sizes = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()  # pyright: ignore[reportPrivateUsage]
        for tensor in saved
    }
    del result
    return sum(size for storage, size in sizes.items() if storage not in without)


def on_meta(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of `module` on the meta device with floating-point weights in `dtype`. Nothing is copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        empty = torch.empty(parameter.shape, dtype=kind, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


class _Attend(torch.autograd.Function):
    """Keeps what the kernels for attention keep: inputs, result and one statistic for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, result, torch.empty(q.shape[:-1], device=q.device))
        return result

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        raise NotImplementedError


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return cast("Tensor", _Attend.apply(q, k, v))


def attend_heads(q: Tensor, k: Tensor, v: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
    """Take the place of the decoder's attention: compute nothing, and keep what it keeps."""
    return _attend(q, k, v)


class _FlashAttention(TorchFunctionMode):
    """Takes the place of torch's attention, which on the meta device would keep all scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, or the stand-in."""
        if func is F.scaled_dot_product_attention:
            return _attend(*args[:3])
        return func(*args, **(kwargs or {}))
