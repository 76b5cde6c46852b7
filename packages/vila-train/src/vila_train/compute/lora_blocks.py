"""A decoder block with LoRA as two autograd functions with hand-written backward passes, and attention between them.

    x -> norm, q, k, v, rotary -> attention -> o, residual, norm, gate and up, SwiGLU, down, residual -> x

With autograd or compiled functions, launching such a layer takes the host longer than computing it takes the GPU. Here
the host does little but launch kernels, and the kernels that write rows also quantize them.

T tokens, D width, H heads, D_h head width
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vila_core.language.attention import AttentionInputs
from vila_core.language.decoder import Block
from vila_train.compute import block_ops
from vila_train.compute.fp8 import QuantizedRows, quantize_rows
from vila_train.compute.lora_group import LoraGroup

FORWARD_8_BITS, BACKWARD_8_BITS = torch.float8_e4m3fn, torch.float8_e5m2


class LoraBlock:
    """A block whose linears all have plain LoRA without dropout, on frozen weights of one kind; its norms are frozen.

    Args:
        block: a block that `of` accepts.
        groups: the linears q, k and v; o; gate and up; down.
    """

    def __init__(self, block: Block, groups: tuple[LoraGroup, LoraGroup, LoraGroup, LoraGroup]):
        self.block = block
        self.qkv, self.o, self.gate_up, self.down = groups
        self.in_8_bits = self.qkv.in_8_bits
        self.head_dim = block.self_attn.head_dim

    @classmethod
    def of(cls, block: Block, groups: Mapping[nn.Module, LoraGroup]) -> "LoraBlock | None":
        """Return `block` as a `LoraBlock`; None if this class cannot compute it.

        Args:
            block: any decoder block.
            groups: the first linear of each group -> the group.
        """
        attention, mlp = block.self_attn, block.mlp
        found = [groups.get(first) for first in (attention.q_proj, attention.o_proj, mlp.gate_proj, mlp.down_proj)]
        if [len(group.modules) if group else 0 for group in found] != [3, 1, 2, 1]:
            return None
        own = cast("tuple[LoraGroup, LoraGroup, LoraGroup, LoraGroup]", tuple(found))
        norms = (block.input_layernorm, block.post_attention_layernorm)
        fits = (
            attention.q_norm is None
            and attention.head_dim.bit_count() == 1  # the kernel turns halves that are powers of two
            and all(group.never_drops and group.in_8_bits == own[0].in_8_bits for group in own)
            and not any(norm.weight.requires_grad for norm in norms)
        )
        return cls(block, own) if fits else None

    def takes(self, x: Tensor, inputs: AttentionInputs) -> bool:
        """Return whether this class can compute the batch `x [B, T, D]`: one packed row, without autocast."""
        return len(x) == 1 and inputs.packed is not None and not torch.is_autocast_enabled(x.device.type)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`x [1, T, D]` -> x, rotated queries `[1, H, T, D_h]`, rotated keys and values `[1, H_kv, T, D_h]`."""
        return cast("Any", _Before.apply(x, cos, sin, self, *self.qkv.parameters()))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """`x [1, T, D]`, `attended [1, H, T, D_h]` -> `[1, T, D]`."""
        factors = [*self.o.parameters(), *self.gate_up.parameters(), *self.down.parameters()]
        return cast("Tensor", _After.apply(x, attended, self, *factors))

    def quantized(self, gradient: Tensor) -> QuantizedRows | None:
        """Return `gradient [T, O]` in 8 bits; None if the linears multiply in 16."""
        return quantize_rows(gradient, BACKWARD_8_BITS) if self.in_8_bits else None


class _Before(torch.autograd.Function):
    """`LoraBlock.before`. It also returns x, so that the norm's backward kernel adds both gradients of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, layer: LoraBlock, *factors: Tensor) -> Any:
        norm, rows = layer.block.input_layernorm, x[0]
        cos, sin = cos.flatten(0, 2), sin.flatten(0, 2)  # [T, D_h]
        _, hidden, quantized = block_ops.add_norm(
            rows, None, norm.weight, norm.eps, FORWARD_8_BITS if layer.in_8_bits else None
        )
        outputs, low = layer.qkv.products(hidden, quantized)
        q, k, v = (y.unflatten(1, (-1, layer.head_dim)) for y in outputs)  # [T, H, D_h]
        block_ops.rotate_rows(q, cos, sin, outputs[0], 1)
        block_ops.rotate_rows(k, cos, sin, outputs[1], 1)
        ctx.save_for_backward(rows, cos, sin, hidden, low)
        ctx.layer = layer
        return x, *(y.transpose(0, 1)[None] for y in (q, k, v))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        grad_x, grad_q, grad_k, grad_v = gradients
        rows, cos, sin, hidden, low = ctx.saved_tensors
        layer: LoraBlock = ctx.layer
        norm = layer.block.input_layernorm
        joint = hidden.new_empty(len(hidden), sum(layer.qkv.widths))
        parts = joint.split(layer.qkv.widths, 1)
        for gradient, part, direction in zip((grad_q, grad_k, grad_v), parts, (-1, -1, 0), strict=True):
            block_ops.rotate_rows(gradient[0].transpose(0, 1), cos, sin, part, direction)
        needed = ctx.needs_input_grad[0]
        quantized = layer.quantized(joint) if needed else None
        grad_hidden, grad_factors = layer.qkv.gradients(parts, hidden, low, quantized, needs_input_grad=needed)
        if grad_hidden is None:
            return None, None, None, None, *grad_factors
        total = block_ops.norm_backward(grad_hidden, rows, norm.weight, norm.eps, grad_x[0])
        return total[None], None, None, None, *grad_factors


class _After(torch.autograd.Function):
    """`LoraBlock.after`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, layer: LoraBlock, *factors: Tensor) -> Tensor:
        norm, dtype = layer.block.post_attention_layernorm, FORWARD_8_BITS if layer.in_8_bits else None
        heads = attended[0].transpose(0, 1).flatten(1)  # [T, H D_h]
        (change,), low_o = layer.o.products(heads)
        total, hidden, quantized = block_ops.add_norm(x[0], change, norm.weight, norm.eps, dtype)
        (gate, up), low_gate_up = layer.gate_up.products(hidden, quantized)
        inner, quantized = block_ops.swiglu(gate, up, dtype)
        (y,), low_down = layer.down.products(inner, quantized)
        ctx.save_for_backward(heads, low_o, total, hidden, low_gate_up, gate, up, inner, low_down)
        ctx.layer = layer
        return y.add_(total)[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        grad_y = gradients[0][0]
        heads, low_o, total, hidden, low_gate_up, gate, up, inner, low_down = ctx.saved_tensors
        layer: LoraBlock = ctx.layer
        norm, dtype = layer.block.post_attention_layernorm, BACKWARD_8_BITS if layer.in_8_bits else None
        grad_inner, grad_down = layer.down.gradients([grad_y], inner, low_down)
        assert grad_inner is not None
        joint, quantized = block_ops.swiglu_backward(grad_inner, gate, up, dtype)
        grad_hidden, grad_gate_up = layer.gate_up.gradients(
            joint.split(layer.gate_up.widths, 1), hidden, low_gate_up, quantized
        )
        assert grad_hidden is not None
        grad_total = block_ops.norm_backward(grad_hidden, total, norm.weight, norm.eps, grad_y)
        grad_heads, grad_o = layer.o.gradients([grad_total], heads, low_o)
        assert grad_heads is not None
        grad_attended = grad_heads.unflatten(1, (-1, layer.head_dim)).transpose(0, 1)[None]
        return grad_total[None], grad_attended, None, *grad_o, *grad_gate_up, *grad_down
