"""The kernels of this distribution, by name: cheap to import, since a kernel's module is imported when it is first asked something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vila_quant.kernels.registry import LinearShape, MatmulKernel
    from vila_quant.packing.groupwise import GroupwiseWeight


@dataclass(frozen=True)
class LazyKernel:
    """A kernel known by what `vila-quant kernels` shows; `vila_quant.kernels.<module>` holds the class `type_name`."""

    name: str
    target: str
    priority: int
    module: str
    type_name: str
    extra: str = ""
    """Of vila-quant, that installs what the module imports."""

    @cached_property
    def _kernel(self) -> MatmulKernel:
        return vars(import_module(f"vila_quant.kernels.{self.module}"))[self.type_name]()

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        try:
            return self._kernel.refusal(shape, device, dtype)
        except ImportError as error:
            return f"{error}: pip install 'vila-quant[{self.extra}]'" if self.extra else str(error)

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        return self._kernel.pack(weight, device, dtype)

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        return self._kernel.multiply(x, packed, shape)


KERNELS: tuple[MatmulKernel, ...] = (
    LazyKernel("cpu-numba", "x86 and ARM CPUs", 100, "cpu.compiled.kernel", "CompiledKernel", extra="cpu"),
    LazyKernel("cpu-int4pack", "x86 and ARM CPUs, bf16", 50, "cpu.int4pack", "CpuInt4PackKernel"),
    LazyKernel("cuda-tinygemm", "NVIDIA GPUs from sm80, bf16", 50, "cuda.tinygemm", "TinygemmKernel"),
    LazyKernel("reference", "any", 0, "reference", "ReferenceKernel"),
)
"""Priorities: 0 is the oracle, 50 what PyTorch gives, 100 and up what is made for the machine."""
