"""The kernels of this distribution. Importing this module is cheap: a kernel's own module is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vila_core.plugins.lazy import import_object
from vila_quant.kernels.kernel import RowKernel, Unavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vila_quant.kernels.kernel import EightBitKernel, LinearShape, MatmulKernel, Scheme
    from vila_quant.packing.groupwise import GroupwiseWeight


@dataclass(frozen=True)
class LazyKernel:
    """A kernel of which only what `vila-quant kernels` lists is known until it is used.

    Attributes:
        path: "module:Class" of the kernel, below `vila_quant.kernels`.
        device_type: where it runs; empty for everywhere.
        install: what to install if a package that the module imports is missing.
    """

    name: str
    target: str
    priority: int
    path: str
    device_type: str = ""
    install: str = ""

    @cached_property
    def _kernel(self) -> Any:
        return import_object(f"vila_quant.kernels.{self.path}")()

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.device_type and device.type != self.device_type:
            return f"it runs on {'a CPU' if self.device_type == 'cpu' else 'an NVIDIA GPU'}, not on {device.type}"
        try:
            return self._kernel.refusal(shape, device, dtype)
        except ImportError as error:
            return Unavailable(f"{error} (pip install '{self.install}')" if self.install else str(error))


class LazyMatmulKernel(LazyKernel):
    """A lazy int4 kernel."""

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        return self._kernel.pack(weight, device, dtype)

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        return self._kernel.multiply(x, packed, shape)


class LazyEightBitKernel(LazyKernel):
    """A lazy kernel for eight-bit weights."""

    def multiply(self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
        return self._kernel.multiply(x, weight, weight_scale, bias)

    @property
    def row_kernel(self) -> RowKernel | None:
        return self._kernel if isinstance(self._kernel, RowKernel) else None


CPUS, NVIDIA, NVIDIA_FP8 = "x86 and ARM CPUs", "NVIDIA GPUs", "NVIDIA GPUs from sm89"
NUMBA, TRITON = "vila-quant[cpu]", "triton"

KERNELS: tuple[MatmulKernel, ...] = (
    LazyMatmulKernel("cpu-numba", CPUS, 100, "cpu.compiled.kernel:CompiledKernel", "cpu", NUMBA),
    LazyMatmulKernel("cpu-int4pack", f"{CPUS}, bf16", 50, "cpu.int4pack:CpuInt4PackKernel", "cpu"),
    LazyMatmulKernel("cuda-w4a16", f"{NVIDIA} from sm80", 100, "cuda.w4a16.kernel:W4A16Kernel", "cuda", TRITON),
    LazyMatmulKernel("cuda-tinygemm", f"{NVIDIA} from sm80, bf16", 50, "cuda.tinygemm:TinygemmKernel", "cuda"),
    LazyMatmulKernel("reference", "any", 0, "reference:ReferenceKernel"),
)
"""For int4 layers. Priorities: 0 is the reference, 50 comes with PyTorch, 100 and above is made for the machine."""

EIGHT_BIT_KERNELS: Mapping[Scheme, tuple[EightBitKernel, ...]] = {
    "int8": (
        LazyEightBitKernel("int8-numba", CPUS, 100, "cpu.compiled.int8:CompiledInt8Kernel", "cpu", NUMBA),
        LazyEightBitKernel("int8-pack", f"{CPUS}, bf16", 50, "int8:Int8PackKernel", "cpu"),
        LazyEightBitKernel("int8-panels", "any", 0, "int8:Int8PanelsKernel"),
    ),
    "w8a8": (
        LazyEightBitKernel("w8a8-triton", NVIDIA, 100, "cuda.w8a8:W8A8TritonKernel", "cuda", TRITON),
        LazyEightBitKernel("w8a8-torch", "any", 50, "int8:W8A8TorchKernel"),
    ),
    "fp8": (
        LazyEightBitKernel("fp8-triton", NVIDIA_FP8, 100, "cuda.fp8:Fp8TritonKernel", "cuda", TRITON),
        LazyEightBitKernel("fp8-torch", NVIDIA_FP8, 50, "fp8:Fp8TorchKernel", "cuda"),
        LazyEightBitKernel("fp8-dequantize", "any", 0, "fp8:Fp8DequantizeKernel"),
    ),
}
"""For eight-bit layers, by scheme."""
