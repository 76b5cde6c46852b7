"""Find the quantized linears of a checkpoint from the headers of its tensors, without torch.

N outputs, K inputs, g group size

| tensors | layer |
| --- | --- |
| `X.qweight` int32 `[K, N/8]`, `X.qzeros` int32 `[K/g, N/8]`, `X.scales` fp16 or bf16 `[K/g, N]` | group-wise int4 |
| `X.weight` int8 `[N, K]`, `X.weight_scale` fp32 `[N, 1]` | int8, one scale per row |
| `X.weight` fp8 (e4m3) `[N, K]`, `X.weight_scale` fp32 `[N, 1]` | fp8, one scale per row |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vila_core.checkpoint import TensorEntry
from vila_core.errors import CheckpointError

if TYPE_CHECKING:
    from vila_quant.kernels.kernel import Scheme

Entries = Mapping[str, TensorEntry]

EIGHT_BITS = {"I8": "int8", "F8_E4M3": "fp8"}
"""Stored dtype of the weights -> kind of the layer."""

GROUPWISE_TENSORS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True)
class GroupwiseLayer:
    """An int4 linear with N `outputs` and K `inputs` in groups of `group_size`; `scales_dtype` is safetensors' name."""

    name: str
    outputs: int
    inputs: int
    group_size: int
    scales_dtype: str

    @property
    def packed(self) -> dict[str, int]:
        """The number of weights that each of its tensors stores."""
        return {f"{self.name}.qweight": self.outputs * self.inputs, f"{self.name}.qzeros": 0, f"{self.name}.scales": 0}


@dataclass(frozen=True)
class EightBitLayer:
    """A linear with N `outputs`, K `inputs` and one scale per row; `kind` is "int8" or "fp8"."""

    name: str
    outputs: int
    inputs: int
    kind: str

    @property
    def scheme(self) -> Scheme:
        """The scheme for `vila_quant.kernels`: int8 towers quantize activations too, since they multiply many rows."""
        if self.kind == "fp8":
            return "fp8"
        return "w8a8" if self.name.startswith("vision_tower.") else "int8"

    @property
    def packed(self) -> dict[str, int]:
        """The number of weights that each of its tensors stores."""
        return {f"{self.name}.weight": self.outputs * self.inputs, f"{self.name}.weight_scale": 0}


@dataclass(frozen=True)
class QuantizedLayers:
    """The quantized linears of a checkpoint, in the order of its tensors."""

    groupwise: tuple[GroupwiseLayer, ...]
    eight_bits: tuple[EightBitLayer, ...]

    @property
    def packed(self) -> dict[str, int]:
        """The number of weights that each tensor stores, by name."""
        return {name: count for layer in (*self.groupwise, *self.eight_bits) for name, count in layer.packed.items()}

    @property
    def group_size(self) -> int:
        """The group size. Raises `CheckpointError` if layers differ, or there are none."""
        first = {layer.group_size: layer for layer in reversed(self.groupwise)}
        if len(first) != 1:
            found = ", ".join(f"{size} ({layer.name})" for size, layer in first.items()) or "no int4 layer"
            raise CheckpointError(f"An AWQ checkpoint has int4 layers with one group size; got {found}.")
        return next(iter(first))

    @property
    def description(self) -> str:
        """The quantized parts besides int4 layers, for people: ", vision tower int8, head int8", or empty."""
        kinds = dict.fromkeys((_part(layer.name), layer.kind) for layer in self.eight_bits)
        return "".join(f", {part} {kind}" for part, kind in kinds)


def _part(name: str) -> str:
    part = name.partition(".")[0]
    return (
        "head"
        if name.endswith("lm_head")
        else {"vision_tower": "vision tower", "mm_projector": "projector"}.get(part, "linears")
    )


def find_layers(entries: Entries) -> QuantizedLayers:
    """Return the quantized layers of the tensors `entries`.

    Raises:
        CheckpointError: a tensor of a layer is missing, unexpected, or has a wrong dtype or shape (it is named).
    """
    groupwise: list[GroupwiseLayer] = []
    eight_bits: list[EightBitLayer] = []
    for name, entry in entries.items():
        module, _, tensor = name.rpartition(".")
        if tensor == "qweight":
            groupwise.append(_groupwise(module, entries))
        elif tensor == "weight" and entry.dtype in EIGHT_BITS:
            eight_bits.append(_eight_bits(module, entries))
        elif tensor in ("qzeros", "scales") and f"{module}.qweight" not in entries:
            raise CheckpointError(
                f"Tensor '{name}' has no '{module}.qweight' beside it. Download the checkpoint again."
            )
        elif tensor == "weight_scale" and entries.get(f"{module}.weight", entry).dtype not in EIGHT_BITS:
            raise CheckpointError(
                f"Tensor '{name}' scales no eight-bit '{module}.weight'. Download the checkpoint again."
            )
    return QuantizedLayers(tuple(groupwise), tuple(eight_bits))


def _groupwise(module: str, entries: Entries) -> GroupwiseLayer:
    if f"{module}.weight" in entries:
        raise CheckpointError(
            f"Layer '{module}' is stored twice: unquantized ('{module}.weight') and quantized ('{module}.qweight')."
        )
    qweight, qzeros, scales = (_tensor(f"{module}.{tensor}", entries) for tensor in GROUPWISE_TENSORS)
    _expect_dtype(f"{module}.qweight", qweight, ("I32",))
    _expect_dtype(f"{module}.qzeros", qzeros, ("I32",))
    _expect_dtype(f"{module}.scales", scales, ("F16", "BF16"))
    if len(qweight.shape) != 2 or 0 in qweight.shape:
        raise CheckpointError(f"Tensor '{module}.qweight' has shape {list(qweight.shape)}; expected [K, N/8].")
    inputs, outputs = qweight.shape[0], 8 * qweight.shape[1]
    groups = scales.shape[0] if scales.shape else 0
    if not groups or inputs % groups:
        raise CheckpointError(
            f"Tensor '{module}.scales' has shape {list(scales.shape)}, whose rows do not divide the {inputs} inputs."
        )
    _expect_shape(f"{module}.scales", scales, (groups, outputs))
    _expect_shape(f"{module}.qzeros", qzeros, (groups, outputs // 8))
    return GroupwiseLayer(module, outputs, inputs, inputs // groups, scales.dtype)


def _eight_bits(module: str, entries: Entries) -> EightBitLayer:
    weight, scale = _tensor(f"{module}.weight", entries), _tensor(f"{module}.weight_scale", entries)
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise CheckpointError(
            f"Tensor '{module}.weight' is {weight.dtype} of shape {list(weight.shape)}; expected [N, K]."
        )
    _expect_dtype(f"{module}.weight_scale", scale, ("F32",))
    _expect_shape(f"{module}.weight_scale", scale, (weight.shape[0], 1))
    return EightBitLayer(module, *weight.shape, EIGHT_BITS[weight.dtype])


def _tensor(name: str, entries: Entries) -> TensorEntry:
    if name not in entries:
        module = name.rpartition(".")[0]
        found = ", ".join(other for other in entries if other.startswith(f"{module}."))
        raise CheckpointError(f"Tensor '{name}' is missing: the layer has only {found}. Download the checkpoint again.")
    return entries[name]


def _expect_dtype(name: str, entry: TensorEntry, expected: Sequence[str]) -> None:
    if entry.dtype not in expected:
        raise CheckpointError(f"Tensor '{name}' is {entry.dtype}; expected {' or '.join(expected)}.")


def _expect_shape(name: str, entry: TensorEntry, expected: tuple[int, ...]) -> None:
    if entry.shape != expected:
        raise CheckpointError(f"Tensor '{name}' has shape {list(entry.shape)}; expected {list(expected)}.")
