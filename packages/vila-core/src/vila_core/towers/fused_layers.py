"""The layers of SigLIP and CLIP as few large operators on an NVIDIA GPU: 16-bit, or with 8-bit linears.

N images, P tokens, D width, I width of the MLP, H heads, M = N · P rows

q, k and v are one product. Norms, residual sums, activations and quantization are one kernel between two products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vila_core.ops.row_settings import LayerNorm, RowFormat
from vila_core.towers.vit import EncoderLayer, activation

IN_PLACE_ROWS = 4096
"""From this many rows on, a product adds to the residual itself; with fewer, cuBLAS then takes slower kernels."""

WIDTH_MULTIPLE = 64
CONSTANT = 32.0
"""An input of every activation that they all return unchanged, and by which a bias is divided without rounding."""


@runtime_checkable
class RowLinear(Protocol):
    """A linear with quantized weights that multiplies quantized rows."""

    @property
    def row_format(self) -> RowFormat | None:
        """How it expects its input; None if its kernel quantizes for itself."""
        ...

    def joined(self, others: Sequence[nn.Module]) -> RowLinear | None:
        """Return this linear and `others` side by side, sharing their memory; None if they do not go together."""
        ...

    def multiply_rows(self, x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes `x [M, K]` and their scales `[M, 1]` -> `[M, N]` in `dtype`."""
        ...


class FusedLayer(Protocol):
    """A layer on rows `[M, D]`."""

    def __call__(self, h: Tensor, pending: Tensor | None, images: int) -> tuple[Tensor, Tensor | None]:
        """Return the residual and what is still to be added to it; `h` may be overwritten."""
        ...


@dataclass(frozen=True)
class HalfLayer:
    """A layer with 16-bit weights.

    The MLP is wider than I by a constant unit, whose column of `fc2` holds the biases of `out` and `fc2`. So both
    products can add to the residual in place, which PyTorch does not offer with a bias.
    """

    norm1: LayerNorm
    qkv: tuple[Tensor, Tensor]
    out: Tensor
    out_bias: Tensor
    norm2: LayerNorm
    fc1: tuple[Tensor, Tensor]
    fc2: Tensor
    zeros: Tensor
    num_heads: int
    act: str

    @classmethod
    @torch.no_grad()
    def of(cls, layer: EncoderLayer, act: str) -> Self:
        """Join and widen the weights of `layer`, whose parameters become parts of the new tensors."""
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        joined = [torch.cat([getattr(linear, name) for linear in projections]) for name in ("weight", "bias")]
        for index, linear in enumerate(projections):
            linear.weight.data, linear.bias.data = (tensor.chunk(3)[index] for tensor in joined)
        width, hidden = mlp.fc2.weight.shape
        wide = -(-(hidden + 1) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        fc1, bias, fc2 = (mlp.fc1.weight.new_zeros(size) for size in ((wide, width), (wide,), (width, wide)))
        fc1[:hidden], bias[:hidden], fc2[:, :hidden] = mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight
        bias[hidden] = CONSTANT
        fc2[:, hidden] = (mlp.fc2.bias.float() + attention.out_proj.bias.float()) / CONSTANT
        mlp.fc1.weight.data, mlp.fc1.bias.data, mlp.fc2.weight.data = fc1[:hidden], bias[:hidden], fc2[:, :hidden]
        return cls(
            norm1=_norm(layer.layer_norm1),
            qkv=(joined[0], joined[1]),
            out=attention.out_proj.weight,
            out_bias=attention.out_proj.bias,
            norm2=_norm(layer.layer_norm2),
            fc1=(fc1, bias),
            fc2=fc2,
            zeros=fc2.new_zeros(width),
            num_heads=attention.num_heads,
            act=act,
        )

    def __call__(self, h: Tensor, pending: Tensor | None, images: int) -> tuple[Tensor, Tensor | None]:
        """See `FusedLayer`."""
        from vila_core.ops.full_attention import full_attention
        from vila_core.ops.rows import process_rows

        x, _, h = process_rows(h, added=pending, norm=self.norm1)
        qkv = F.linear(x, *self.qkv).unflatten(0, (images, -1))  # [N, P, 3 D]
        h, pending = self._add(h, full_attention(qkv, self.num_heads).flatten(0, 1), self.out)
        x, _, h = process_rows(h, added=pending, shift=self.out_bias, norm=self.norm2)
        return self._add(h, self._activated(x), self.fc2)

    def _add(self, h: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        if len(x) >= IN_PLACE_ROWS:
            return h.addmm_(x, weight.T), None
        # Given a bias, even of zeros, PyTorch takes cuBLASLt, whose kernels for few rows are faster.
        return h, F.linear(x, weight, self.zeros)

    def _activated(self, x: Tensor) -> Tensor:
        weight, bias = self.fc1
        if self.act == "gelu_pytorch_tanh" and x.is_cuda:
            return torch.ops.aten._addmm_activation(bias, x, weight.T, use_gelu=True)
        return activation(self.act)(F.linear(x, weight, bias))


@dataclass(frozen=True)
class EightBitLayer:
    """A layer whose linears multiply quantized rows."""

    norm1: LayerNorm
    qkv: RowLinear
    out: RowLinear
    norm2: LayerNorm
    fc1: RowLinear
    fc2: RowLinear
    format: RowFormat
    num_heads: int
    act: str

    @classmethod
    def of(cls, layer: EncoderLayer, act: str) -> Self | None:
        """Return the layer; None if its linears do not all multiply rows of one format."""
        attention, mlp = layer.self_attn, layer.mlp
        modules: list[nn.Module] = [attention.q_proj, attention.out_proj, mlp.fc1, mlp.fc2]
        linears = [module for module in modules if isinstance(module, RowLinear)]
        formats = {linear.row_format for linear in linears}
        form = next(iter(formats), None)
        if len(linears) < len(modules) or len(formats) > 1 or form is None:
            return None
        qkv = linears[0].joined([attention.k_proj, attention.v_proj])
        if qkv is None:
            return None
        return cls(
            norm1=_norm(layer.layer_norm1),
            qkv=qkv,
            out=linears[1],
            norm2=_norm(layer.layer_norm2),
            fc1=linears[2],
            fc2=linears[3],
            format=form,
            num_heads=attention.num_heads,
            act=act,
        )

    def __call__(self, h: Tensor, pending: Tensor | None, images: int) -> tuple[Tensor, Tensor | None]:
        """See `FusedLayer`."""
        from vila_core.ops.full_attention import full_attention
        from vila_core.ops.rows import process_rows

        x, scales, h = process_rows(h, added=pending, norm=self.norm1, quantize=self.format)
        qkv = self._multiply(self.qkv, x, scales, h).unflatten(0, (images, -1))  # [N, P, 3 D]
        x, scales, _ = process_rows(full_attention(qkv, self.num_heads).flatten(0, 1), quantize=self.format)
        pending = self._multiply(self.out, x, scales, h)
        x, scales, h = process_rows(h, added=pending, norm=self.norm2, quantize=self.format)
        hidden = self._multiply(self.fc1, x, scales, h)
        x, scales, _ = process_rows(hidden, act=self.act, quantize=self.format)
        return h, self._multiply(self.fc2, x, scales, h)

    def _multiply(self, linear: RowLinear, x: Tensor, scales: Tensor | None, h: Tensor) -> Tensor:
        assert scales is not None
        return linear.multiply_rows(x, scales, h.dtype)


def fuse(layer: EncoderLayer, act: str) -> FusedLayer | None:
    """Return `layer` fused, or None if its linears are of several kinds. `act` is the name of its activation."""
    attention, mlp = layer.self_attn, layer.mlp
    linears: Sequence[nn.Module] = (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.out_proj,
        mlp.fc1,
        mlp.fc2,
    )
    if all(type(linear) is nn.Linear for linear in linears):
        return HalfLayer.of(layer, act)
    return EightBitLayer.of(layer, act)


def _norm(norm: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(norm.weight, norm.bias, norm.eps)
