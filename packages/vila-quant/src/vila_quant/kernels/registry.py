"""The kernels of every plugin (hook `vila_kernels`), and the choice among them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from vila_core.errors import ConfigError
from vila_core.plugins.loader import load_plugins

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vila_quant.packing.groupwise import GroupwiseWeight


@dataclass(frozen=True)
class LinearShape:
    """A linear layer's sizes: `outputs` N, `inputs` K, `group_size` g; weights of `bits`."""

    outputs: int
    inputs: int
    group_size: int
    bits: int = 4

    def unfit(self, group_sizes: Sequence[int]) -> str | None:
        """Return why a kernel of four bits, in groups of one of these sizes, cannot take the layer; None where it can."""
        if self.bits != 4:
            return f"it takes 4 bits, not {self.bits}"
        if self.group_size not in group_sizes:
            return f"it takes groups of {', '.join(map(str, group_sizes))}, not {self.group_size}"
        return None

    def __str__(self) -> str:
        return f"a layer of {self.outputs} outputs and {self.inputs} inputs in groups of {self.group_size}, {self.bits} bits"


@runtime_checkable
class MatmulKernel(Protocol):
    """A matrix product `x [M, K]` times a group-wise weight `[N, K]`, transposed.

    Of the kernels that do not refuse a layer, the one with the highest `priority` is taken; `reference` refuses none.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str:
        """Where it runs, for people: "any", "x86 and ARM CPUs", "NVIDIA GPUs from sm80"."""
        ...

    @property
    def priority(self) -> int: ...

    def refusal(self, shape: LinearShape, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why the kernel cannot take this layer with activations of `dtype` on `device`; None where it can."""
        ...

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]:
        """Return the weight in the kernel's own layout, on `device`."""
        ...

    def multiply(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        """`x [M, K]` -> `[M, N]` in the dtype of `x`; M may be any number from 0."""
        ...


_forced: ContextVar[str | None] = ContextVar("forced kernel", default=None)


@contextmanager
def forced(name: str | None) -> Generator[None]:
    """Within the block, layers that are loaded take the kernel `name`, or fail. None: as usual.

    with vila_quant.kernels.forced("reference"):
        model = vila_core.load("my-model-awq")
    """
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(shape: LinearShape, device: torch.device, dtype: torch.dtype) -> MatmulKernel:
    """Return the kernel for a layer. Raises `ConfigError` where a forced kernel is unknown or refuses, or none can take it."""
    name = _forced.get()
    if name is not None:
        kernel = cast("MatmulKernel", load_plugins().kernels.get(name))
        reason = kernel.refusal(shape, device, dtype)
        if reason is not None:
            activations = f"activations in {str(dtype).removeprefix('torch.')}"
            raise ConfigError(
                f"The kernel '{name}' was asked for, but refuses {shape}, {activations}: {reason}. "
                "Leave --kernel out, or ask for another (`vila-quant kernels` lists them)."
            )
        return kernel
    fitting = [kernel for kernel in all_kernels() if kernel.refusal(shape, device, dtype) is None]
    if not fitting:
        raise ConfigError(f"No kernel takes {shape} on {device} in {dtype}. `vila-quant kernels` says why.")
    return fitting[0]


def all_kernels() -> list[MatmulKernel]:
    """Return the registered kernels, the highest priority first."""
    kernels = [cast("MatmulKernel", kernel) for kernel in load_plugins().kernels]
    return sorted(kernels, key=lambda kernel: (-kernel.priority, kernel.name))
