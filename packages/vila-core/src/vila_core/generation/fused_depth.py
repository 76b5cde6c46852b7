"""The depth transformer's cached steps as fused operators, on a GPU.

R rows, E width, H width of the language model, C width of codes, D codes per position, K codebook size, A heads

A layer is seven launches: norm, qkv, attention with the cache, proj, norm, fc1 with GELU, fc2. Each norm first adds the
output of the linear before it to the residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from vila_core.language.linear_groups import group
from vila_core.ops.row_settings import LayerNorm
from vila_core.ops.support import refusal

if TYPE_CHECKING:
    from vila_core.generation.depth_transformer import DepthBlock, DepthTransformer


def can_fuse(transformer: DepthTransformer, hidden: Tensor) -> bool:
    """Return whether the operators can run the steps of `transformer` for `hidden [R, H]`: on a GPU, in 16 bits."""
    linears = [module for module in transformer.modules() if isinstance(module, nn.Linear)]
    plain = all(type(linear) is nn.Linear and linear.weight.dtype == hidden.dtype for linear in linears)
    return plain and refusal(hidden.device, hidden.dtype) is None


class FusedDepthSteps:
    """`depth_transformer.DepthSteps` with the fused operators.

    Args:
        transformer: one that `can_fuse` accepts. Its q, k and v weights are moved next to each other in memory.
        like: `[R, …]`, a tensor for as many rows, in the dtype of the model.
    """

    def __init__(self, transformer: DepthTransformer, like: Tensor):
        config = transformer.config
        self._transformer = transformer
        self._layers = [_FusedLayer(block) for block in transformer.blocks]
        heads = config.num_attention_heads
        shape = (2, len(self._layers), len(like), heads, config.code_depth, config.embed_dim // heads)
        self._cache = like.new_empty(shape)  # keys and values

    def read_hidden(self, hidden: Tensor) -> Tensor:
        return _linear(hidden, self._transformer.in_mlp_2)

    def read_codes(self, total: Tensor) -> Tensor:
        return _linear(total, self._transformer.in_mlp_1)

    def logits(self, x: Tensor, depth: int) -> Tensor:
        from vila_core.ops.rows import process_rows  # needs Triton

        change: Tensor | None = None
        for layer, keys, values in zip(self._layers, *self._cache.unbind(0), strict=True):
            change, x = layer(change, x, keys, values, depth)
        classifier = self._transformer.classifier_mlp
        normed, _, _ = process_rows(x, added=change, norm=_norm(classifier.layer_norm))
        return _linear(normed, classifier.linear)


class _FusedLayer:
    """A block without its last addition: the next norm adds the output of its MLP."""

    def __init__(self, block: DepthBlock):
        attention, mlp = block.attn, block.mlp
        self._norms = _norm(block.ln1), _norm(block.ln2)
        self._qkv = group((attention.query, attention.key, attention.value), join=True)
        self._proj = attention.proj
        fc1, _, fc2 = mlp
        assert isinstance(fc1, nn.Linear)
        assert isinstance(fc2, nn.Linear)
        self._fc1, self._fc2 = fc1, fc2

    def __call__(
        self, change: Tensor | None, x: Tensor, keys: Tensor, values: Tensor, depth: int
    ) -> tuple[Tensor, Tensor]:
        """Return the output of this layer's MLP, and the residual to add it to, both `[R, E]`.

        Args:
            change: output of the previous layer's MLP, `[R, E]`; None in the first layer.
            x: the residual to add it to, `[R, E]`.
            keys: this layer's cache `[R, A, D, E / A]`, updated.
            values: likewise.
            depth: index of the new code.
        """
        from vila_core.ops.depth_attention import depth_attention
        from vila_core.ops.linear import gelu_linear
        from vila_core.ops.rows import process_rows

        normed, _, x = process_rows(x, added=change, norm=self._norms[0])
        mixed = depth_attention(self._qkv(normed), keys, values, depth)
        normed, _, x = process_rows(x, added=_linear(mixed, self._proj), norm=self._norms[1])
        return _linear(gelu_linear(normed, self._fc1.weight, self._fc1.bias), self._fc2), x


def _norm(norm: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(norm.weight, norm.bias, norm.eps)


def _linear(x: Tensor, linear: nn.Linear) -> Tensor:
    from vila_core.ops.linear import linear as product

    return product(x, (linear.weight,), (linear.bias,))
