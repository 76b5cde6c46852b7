"""The shapes of a model's four-bit linears as the GPU kernels see them (for `vila-quant tune`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vila_core.bench.shapes import language_shape
from vila_core.errors import ConfigError
from vila_quant.checking.kernel_choices import GROUP_SIZE, layers_of
from vila_quant.kernels.kernel import LinearShape

if TYPE_CHECKING:
    from vila_core.checkpoint import Checkpoint

FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
"""Linears of the same activations are one product on a GPU."""

ORDER = ("qkv", "o_proj", "gate_up", "down_proj")


@dataclass(frozen=True)
class TunedShapes:
    """Outputs and inputs of each product of a layer, in the order of the calls, and the group size of the weights."""

    shapes: tuple[tuple[int, int], ...]
    group_size: int


def named_shapes(name: str) -> TunedShapes:
    """Return the shapes of a released model. Raises `ConfigError` if it is unknown."""
    config = language_shape(name)
    heads, width = config.num_attention_heads * config.head_dim, config.hidden_size
    qkv = heads + 2 * config.num_key_value_heads * config.head_dim
    inner = config.intermediate_size
    return TunedShapes(((qkv, width), (width, heads), (2 * inner, width), (width, inner)), GROUP_SIZE)


def shapes_of_checkpoint(checkpoint: Checkpoint) -> TunedShapes:
    """Return the shapes of a checkpoint's four-bit layers; without any, those of the layers that `awq` would quantize.

    Raises:
        ConfigError: there are no such layers.
    """
    return fused_shapes(layers_of(checkpoint))


def fused_shapes(layers: Mapping[LinearShape, tuple[str, ...]]) -> TunedShapes:
    """Return the shapes of four-bit `layers`, those of the same activations as one. Raises `ConfigError` if none."""
    outputs: dict[tuple[str, str, int], int] = {}
    groups: Counter[int] = Counter()
    for shape, names in layers.items():
        if shape.scheme != "int4":
            continue
        groups[shape.group_size] += len(names)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            key = parent, FUSED.get(leaf, leaf), shape.inputs
            outputs[key] = outputs.get(key, 0) + shape.outputs
    if not outputs:
        raise ConfigError("The model has no four-bit layers, and none that `vila-quant awq` would quantize.")
    rank = {name: number for number, name in enumerate(ORDER)}
    ordered = sorted(outputs, key=lambda key: rank.get(key[1], len(rank)))
    shapes = dict.fromkeys((outputs[key], key[2]) for key in ordered)
    return TunedShapes(tuple(shapes), groups.most_common(1)[0][0])
