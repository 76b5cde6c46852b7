"""Find out which kernel runs each layer of a model on a device, and why (for `vila-quant kernels`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vila_core.errors import ConfigError
from vila_quant.formats.layers import find_layers
from vila_quant.kernels.kernel import LinearShape
from vila_quant.kernels.registry import choose, choose_eight_bit, kernels_for

if TYPE_CHECKING:
    import torch

    from vila_core.checkpoint import Checkpoint

GROUP_SIZE = 128
"""Assumed for layers that are not quantized yet, if it divides their width; otherwise 64 or 32."""

_ATTENTION, _MLP = "llm.model.layers.*.self_attn", "llm.model.layers.*.mlp"
NVILA_8B: Mapping[LinearShape, tuple[str, ...]] = {
    LinearShape(3584, 3584, GROUP_SIZE): (f"{_ATTENTION}.q_proj", f"{_ATTENTION}.o_proj"),
    LinearShape(512, 3584, GROUP_SIZE): (f"{_ATTENTION}.k_proj", f"{_ATTENTION}.v_proj"),
    LinearShape(18944, 3584, GROUP_SIZE): (f"{_MLP}.gate_proj", f"{_MLP}.up_proj"),
    LinearShape(3584, 18944, GROUP_SIZE): (f"{_MLP}.down_proj",),
}
"""The layers of NVILA-8B, used if no model is given."""


@dataclass(frozen=True)
class Choice:
    """The kernel for layers of one shape. `layers` are names with `*` for numbers; `refusals` are others' reasons."""

    layers: tuple[str, ...]
    shape: LinearShape
    kernel: str
    reason: str
    refusals: Mapping[str, str]


def layers_of(checkpoint: Checkpoint) -> dict[LinearShape, tuple[str, ...]]:
    """Return the quantized linears of a checkpoint by shape; if there are none, those that `awq` would quantize."""
    entries = checkpoint.weights.entries
    quantized = find_layers(entries)
    if quantized.groupwise or quantized.eight_bits:
        int4 = [
            (layer.name, LinearShape(layer.outputs, layer.inputs, layer.group_size)) for layer in quantized.groupwise
        ]
        eight_bit = [
            (layer.name, LinearShape.eight_bit(layer.scheme, layer.outputs, layer.inputs))
            for layer in quantized.eight_bits
        ]
        return _by_shape([*int4, *eight_bit])
    linears = {
        name.removesuffix(".weight"): entry.shape
        for name, entry in entries.items()
        if re.fullmatch(r"llm\..*\.layers\.\d+\..*\.weight", name) and len(entry.shape) == 2
    }
    return _by_shape(
        (name, LinearShape(shape[0], shape[1], _fitting_group(shape[1]))) for name, shape in linears.items()
    )


def choices(layers: Mapping[LinearShape, tuple[str, ...]], device: torch.device, dtype: torch.dtype) -> list[Choice]:
    """Return the choice for each shape. Raises `ConfigError` if there is none, as loading does."""
    return [_choice(shape, names, device, dtype) for shape, names in layers.items()]


def _choice(shape: LinearShape, names: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Choice:
    kernel = (choose if shape.scheme == "int4" else choose_eight_bit)(shape, device, dtype)
    kernels = kernels_for(shape.scheme)
    reasons = {other.name: other.refusal(shape, device, dtype) for other in kernels}
    refusals = {name: reason for name, reason in reasons.items() if reason is not None}
    fitting = [other.name for other in kernels if other.name not in refusals]
    if kernel.name != fitting[0]:
        reason = f"requested; the default is {fitting[0]}"
    elif len(fitting) == 1:
        reason = "the only one that can"
    else:
        reason = f"priority {kernel.priority}, before {', '.join(fitting[1:])}"
    return Choice(names, shape, kernel.name, reason, refusals)


def _by_shape(layers: Iterable[tuple[str, LinearShape]]) -> dict[LinearShape, tuple[str, ...]]:
    found: dict[LinearShape, dict[str, None]] = {}
    for name, shape in layers:
        found.setdefault(shape, {})[re.sub(r"\.\d+\.", ".*.", name)] = None
    return {shape: tuple(names) for shape, names in found.items()}


def _fitting_group(inputs: int) -> int:
    for size in (GROUP_SIZE, 64, 32):
        if inputs % size == 0:
            return size
    raise ConfigError(
        f"None of the group sizes 128, 64 and 32 divides a width of {inputs}. Leave such layers out with `--skip`."
    )
