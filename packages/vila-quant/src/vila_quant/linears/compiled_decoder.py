"""A whole decoder for one new token of each row of a batch, in one compiled call: a token then waits for memory alone.

L layers, B batch, N outputs, K inputs, D width, H query heads, H_kv key/value heads, D_h head width, I width of the MLP

The weights of all layers are stacked. The residual stream, norms and rotations stay in float32, while the decoder in
PyTorch rounds each to the model's dtype.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from vila_core.language.decoder import Block, DecoderModel, RMSNorm
from vila_quant.kernels.cpu.compiled.attention import Integers, attend, rotate, write
from vila_quant.kernels.cpu.compiled.compiler import as_floats, as_numbers, compiled, parallel, prange, share_threads
from vila_quant.kernels.cpu.compiled.kernel import CompiledKernel, nibbles
from vila_quant.kernels.cpu.compiled.numbers import Numbers, exp
from vila_quant.kernels.cpu.compiled.products import (
    Activations,
    Floats,
    Nibbles,
    add_block,
    add_product,
    cut_group,
    empty_activations,
    group_size,
    whole_numbers,
)
from vila_quant.kernels.cpu.compiled.vectors import ROWS
from vila_quant.kernels.cpu.pages import large_pages
from vila_quant.linears.groupwise_linear import GroupwiseLinear

ROLES = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
"""The linears of a block, in the order of computation."""


class Linear(NamedTuple):
    """A weight `[N, K]`, N a multiple of 16, and a bias `[N]`, of zeros where there is none."""

    weight: Nibbles
    bias: Floats


class Norm(NamedTuple):
    """The weight of an RMS norm, empty where there is no norm, and what is added to the mean square."""

    weight: Floats
    eps: float


class BlockWeights(NamedTuple):
    """The layers of a block, or of all blocks, every array then with a first dimension L.

    Linears that multiply the same activations have groups of one size.
    """

    input_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    q_norm: Norm
    k_norm: Norm
    o: Linear
    mlp_norm: Norm
    gate: Linear
    up: Linear
    down: Linear


class Pages(NamedTuple):
    """The cache of a step: keys and values `[L, N, H_kv, P, D_h]`, and for each row its pages and its tokens.

    `table` is int64 `[B, pages of a row]`, `lengths` int64 `[B]`, the new token included.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor


class CompiledDecoder:
    """The compiled equivalent of a `DecoderModel`, for one new token of each row."""

    def __init__(self, blocks: BlockWeights, norm: Norm):
        self._blocks = blocks
        self._norm = norm

    @classmethod
    def of(cls, model: DecoderModel) -> Self | None:
        """Return the compiled decoder; None if a linear uses another kernel, or its shape is not supported.

        The linears' packed weights become parts of the stacks, so that there is one copy.
        """
        blocks = [layer for layer in model.layers if isinstance(layer, Block)]
        roles = _linears_by_role(blocks)
        if roles is None:
            return None
        q, k, v, o, gate, up, down = (_stack_linears(linears) for linears in roles)
        weights = BlockWeights(
            input_norm=_stack_norms([block.input_layernorm for block in blocks]),
            q=q,
            k=k,
            v=v,
            q_norm=_stack_norms([block.self_attn.q_norm for block in blocks]),
            k_norm=_stack_norms([block.self_attn.k_norm for block in blocks]),
            o=o,
            mlp_norm=_stack_norms([block.post_attention_layernorm for block in blocks]),
            gate=gate,
            up=up,
            down=down,
        )
        return cls(weights, Norm(as_floats(model.norm.weight), model.norm.eps))

    def __call__(self, x: Tensor, rotation: tuple[Tensor, Tensor], pages: Pages) -> Tensor:
        """One token of each row, `x [B, 1, D]` -> `[B, 1, D]`; it is the last of its row's `pages.lengths`."""
        share_threads()
        cos, sin = (as_floats(part.flatten(0, 2)) for part in rotation)
        y = decode(
            as_floats(x[:, 0]),
            self._blocks,
            self._norm,
            cos,
            sin,
            as_numbers(pages.keys),
            as_numbers(pages.values),
            pages.table.numpy(),
            pages.lengths.numpy(),
        )
        return torch.from_numpy(y).to(x.dtype)[:, None]


def _linears_by_role(blocks: Sequence[Block]) -> list[list[GroupwiseLinear]] | None:
    """Return the linears of all blocks for each of `ROLES`; None if some cannot be stacked or use another kernel."""
    roles: list[list[GroupwiseLinear]] = []
    for name in ROLES:
        modules = [block.get_submodule(name) for block in blocks]
        linears = [module for module in modules if isinstance(module, GroupwiseLinear) and _fits(module)]
        if len(linears) < len(modules) or len({linear.shape for linear in linears}) != 1:
            return None
        roles.append(linears)
    q, k, v, _, gate, up, _ = (linears[0].shape.group_size for linears in roles)
    return roles if q == k == v and gate == up else None


def _fits(module: GroupwiseLinear) -> bool:
    return module.kernel is not None and module.kernel.name == CompiledKernel.name and module.shape.outputs % ROWS == 0


def _stack_linears(layers: Sequence[GroupwiseLinear]) -> Linear:
    """Stack the layers' packed weights, and let each layer have its part of the stack."""
    stacks = [_stack(parts) for parts in zip(*(layer.packed for layer in layers), strict=True)]
    for layer, *parts in zip(layers, *stacks, strict=True):
        layer.packed = parts
    biases = [torch.zeros(layer.shape.outputs) if layer.bias is None else layer.bias for layer in layers]
    return Linear(nibbles(stacks), as_floats(torch.stack(biases)))


def _stack(parts: Sequence[Tensor]) -> Tensor:
    stack = large_pages((len(parts), *parts[0].shape), parts[0].dtype)
    return torch.stack(list(parts), out=stack)


def _stack_norms(norms: Sequence[RMSNorm | None]) -> Norm:
    present = [norm for norm in norms if norm is not None]
    if not present:
        return Norm(np.empty((len(norms), 0), np.float32), 0.0)
    return Norm(as_floats(torch.stack([norm.weight for norm in present])), present[0].eps)


@compiled
def decode(
    x: Floats,
    blocks: BlockWeights,
    norm: Norm,
    cos: Floats,
    sin: Floats,
    keys: Numbers,
    values: Numbers,
    table: Integers,
    lengths: Integers,
) -> Floats:
    """`x [B, D]`, `cos` and `sin` `[B or 1, D_h]`, and the parts of `Pages` -> `[B, D]`."""
    for layer in range(len(keys)):
        x = decode_block(x, of_layer(blocks, layer), cos, sin, keys[layer], values[layer], table, lengths)
    return rms_norm(x, norm)


@compiled
def decode_block(
    x: Floats,
    block: BlockWeights,
    cos: Floats,
    sin: Floats,
    keys: Numbers,
    values: Numbers,
    table: Integers,
    lengths: Integers,
) -> Floats:
    """`x [B, D]` and a layer's cache `[N, H_kv, P, D_h]` -> `[B, D]`."""
    heads = (len(x), -1, keys.shape[3])
    a = whole_numbers(rms_norm(x, block.input_norm), group_size(block.q.weight))
    q, k, v = biases(block.q, len(x)), biases(block.k, len(x)), biases(block.v, len(x))
    add_three_products(block.q.weight, block.k.weight, block.v.weight, a, q, k, v)
    q_heads, k_heads, v_heads = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    if block.q_norm.weight.size > 0:
        q_heads = rms_norm(q.reshape(-1, keys.shape[3]), block.q_norm).reshape(heads)
        k_heads = rms_norm(k.reshape(-1, keys.shape[3]), block.k_norm).reshape(heads)
    rotate(q_heads, cos, sin)
    rotate(k_heads, cos, sin)
    write(keys, table, lengths, k_heads)
    write(values, table, lengths, v_heads)
    attended = attend(q_heads, keys, values, table, lengths).reshape(q.shape)
    y = x + block.o.bias
    add_product(block.o.weight, whole_numbers(attended, group_size(block.o.weight)), y)

    a = whole_numbers(rms_norm(y, block.mlp_norm), group_size(block.gate.weight))
    gate, up = biases(block.gate, len(x)), biases(block.up, len(x))
    hidden = empty_activations(len(x), gate.shape[1], group_size(block.down.weight))
    gated_products(block.gate.weight, block.up.weight, a, gate, up, hidden)
    y += block.down.bias
    add_product(block.down.weight, hidden, y)
    return y


@compiled
def of_layer(blocks: BlockWeights, layer: int) -> BlockWeights:
    """Return one layer of stacked weights."""
    return BlockWeights(
        norm_of_layer(blocks.input_norm, layer),
        linear_of_layer(blocks.q, layer),
        linear_of_layer(blocks.k, layer),
        linear_of_layer(blocks.v, layer),
        norm_of_layer(blocks.q_norm, layer),
        norm_of_layer(blocks.k_norm, layer),
        linear_of_layer(blocks.o, layer),
        norm_of_layer(blocks.mlp_norm, layer),
        linear_of_layer(blocks.gate, layer),
        linear_of_layer(blocks.up, layer),
        linear_of_layer(blocks.down, layer),
    )


@compiled
def linear_of_layer(linears: Linear, layer: int) -> Linear:
    """Return one of stacked linears."""
    weight = linears.weight
    return Linear(Nibbles(weight.words[layer], weight.scales[layer], weight.zeros[layer]), linears.bias[layer])


@compiled
def norm_of_layer(norms: Norm, layer: int) -> Norm:
    """Return one of stacked norms."""
    return Norm(norms.weight[layer], norms.eps)


@compiled
def rms_norm(x: Floats, norm: Norm) -> Floats:
    """Root-mean-square norm of each row of `x`."""
    y = np.empty_like(x)
    for row in range(x.shape[0]):
        squares = np.float32(0)
        for i in range(x.shape[1]):
            squares += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(x.shape[1]) + np.float32(norm.eps))
        for i in range(x.shape[1]):
            y[row, i] = x[row, i] * factor * norm.weight[i]
    return y


@compiled
def biases(layer: Linear, rows: int) -> Floats:
    """Return what the products of a layer are added to, `[B, N]`."""
    y = np.empty((rows, layer.bias.size), np.float32)
    y[:] = layer.bias
    return y


@parallel
def add_three_products(wq: Nibbles, wk: Nibbles, wv: Nibbles, a: Activations, q: Floats, k: Floats, v: Floats) -> None:
    """Three of `add_product`, shared among threads as one: keys and values alone are too small."""
    first, second = len(wq.words), len(wq.words) + len(wk.words)
    for turn in prange(second + len(wv.words)):
        if turn < first:
            add_block(wq, turn, a, q)
        elif turn < second:
            add_block(wk, turn - first, a, k)
        else:
            add_block(wv, turn - second, a, v)


@parallel
def gated_products(
    gate_weight: Nibbles, up_weight: Nibbles, a: Activations, gate: Floats, up: Floats, hidden: Activations
) -> None:
    """Add the products to `gate` and `up` `[B, I]`, and quantize `silu(gate) · up` for the next product, by groups."""
    groups = hidden.scales.shape[1]
    size = gate.shape[1] // groups
    for group in prange(groups):
        start = group * size
        for block in range(start // ROWS, (start + size) // ROWS):
            add_block(gate_weight, block, a, gate)
            add_block(up_weight, block, a, up)
        for row in range(gate.shape[0]):
            for i in range(start, start + size):
                z = gate[row, i]
                gate[row, i] = z / (np.float32(1) + exp(-z)) * up[row, i]
            cut_group(gate[row, start : start + size], hidden, row, group)
