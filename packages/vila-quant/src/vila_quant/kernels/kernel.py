"""The shape of a layer, and the protocols that kernels implement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vila_core.ops.row_settings import RowFormat
    from vila_quant.packing.groupwise import GroupwiseWeight

Scheme = Literal["int4", "int8", "w8a8", "fp8"]
"""Group-wise int4 weights; int8 weights; int8 weights and activations; fp8 (e4m3) weights and activations."""

SCHEMES: tuple[Scheme, ...] = ("int4", "int8", "w8a8", "fp8")


@dataclass(frozen=True)
class LinearShape:
    """A linear layer: `outputs` N, `inputs` K, `group_size` g (K for eight-bit layers), `bits` per weight, `scheme`."""

    outputs: int
    inputs: int
    group_size: int
    bits: int = 4
    scheme: Scheme = "int4"

    @classmethod
    def eight_bit(cls, scheme: Scheme, outputs: int, inputs: int) -> LinearShape:
        """Return the shape of a layer with eight-bit weights and one scale per output."""
        return cls(outputs, inputs, inputs, 8, scheme)

    def unfit(self, group_sizes: Sequence[int]) -> str | None:
        """Return why an int4 kernel for groups of one of these sizes cannot run the layer; None if it can."""
        if self.bits != 4:
            return f"it takes 4 bits, not {self.bits}"
        if self.group_size not in group_sizes:
            return f"it takes groups of {', '.join(map(str, group_sizes))}, not {self.group_size}"
        return None

    def __str__(self) -> str:
        sizes = f"{self.outputs} outputs and {self.inputs} inputs"
        if self.scheme != "int4":
            return f"a layer of {sizes}, {self.scheme}"
        return f"a layer of {sizes} in groups of {self.group_size}, {self.bits} bits"


class Unavailable(str):
    """A refusal because of the machine, not the layer: a package or hardware unit is missing."""

    __slots__ = ()


@runtime_checkable
class Kernel(Protocol):
    """The protocol of every kernel."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str:
        """Where it runs, for people: "any", "x86 and ARM CPUs", "NVIDIA GPUs from sm80"."""
        ...

    @property
    def priority(self) -> int: ...

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why the kernel cannot run this layer with activations of `dtype` on `device`; None if it can.

        An `Unavailable` means that it could run here if a package or a hardware unit were there.
        """
        ...


@runtime_checkable
class MatmulKernel(Kernel, Protocol):
    """A product of `x [M, K]` and a transposed group-wise int4 weight `[N, K]` (hook `vila_kernels`)."""

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        """Return the weight in the kernel's own layout, on `device`."""
        ...

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        """`x [M, K]` -> `[M, N]` in the dtype of `x`; M may be any number from 0."""
        ...


class EightBitKernel(Kernel, Protocol):
    """A product with an eight-bit weight that has one scale per output."""

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        """`x [M, K]`, `weight [N, K]`, `weight_scale [N, 1]` float32, `bias [N]` -> `[M, N]` in the dtype of `x`."""
        ...

    @property
    def row_kernel(self) -> RowKernel | None:
        """The same product of rows that are quantized already; None if the kernel has none."""
        ...


@runtime_checkable
class RowKernel(Protocol):
    """A product of quantized rows."""

    @property
    def row_format(self) -> RowFormat:
        """How the rows are quantized."""
        ...

    def multiply_rows(
        self, x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """`x [M, K]`, `x_scale [M, 1]`, `weight [N, K]`, `weight_scale [N, 1]`, `bias [N]` -> `[M, N]` in `dtype`."""
        ...
