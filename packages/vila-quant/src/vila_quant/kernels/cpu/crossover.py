"""Two ways to multiply on a CPU, and the number of rows from which the second is faster, measured on this machine.

With few rows, memory is the limit, so weights are unpacked while they are multiplied. With many rows, the weight can be
dequantized once, a panel at a time, and multiplied like any matrix, which is faster on some CPUs.

M rows, N outputs, K inputs, g group size
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import ParamSpec, Protocol

import torch
from torch import Tensor

from vila_quant.kernels.kernel import LinearShape
from vila_quant.packing.groupwise import GroupwiseWeight

CROSSOVERS = (8, 16, 32, 64, 256)
"""Numbers of rows from which panels may be used; below the first, they never are."""

NEVER = 1 << 40
"""More rows than there are."""

MEASURED_WEIGHTS = 1 << 19
"""Number of weights of the layer that is timed."""

Arguments = ParamSpec("Arguments")

_pinned: ContextVar["Plan | None"] = ContextVar("pinned plan", default=None)


@dataclass(frozen=True)
class Plan:
    """From `panels_from` rows, panels are dequantized to `panel_dtype` and multiplied."""

    panels_from: int
    panel_dtype: torch.dtype


class TwoWays(Protocol):
    """A kernel with both ways; hashable."""

    def pack(self, weight: GroupwiseWeight, device: torch.device, dtype: torch.dtype) -> Sequence[Tensor]: ...

    def unpacking(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
        """`x [M, K]` -> `[M, N]`, in the dtype of `x`."""
        ...

    def panels(self, x: Tensor, packed: Sequence[Tensor], shape: LinearShape, dtype: torch.dtype) -> Tensor:
        """`x [M, K]` -> `[M, N]`, multiplied in `dtype`, in the dtype of `x`."""
        ...


def multiply(kernel: TwoWays, x: Tensor, packed: Sequence[Tensor], shape: LinearShape) -> Tensor:
    """`x [M, K]` -> `[M, N]`, with the method that is faster for M rows."""
    if len(x) < CROSSOVERS[0]:
        return kernel.unpacking(x, packed, shape)
    plan = _pinned.get() or measured_plan(kernel, shape.inputs, shape.group_size, x.dtype, torch.get_num_threads())
    if len(x) < plan.panels_from:
        return kernel.unpacking(x, packed, shape)
    return kernel.panels(x, packed, shape, plan.panel_dtype)


@contextmanager
def pinned(plan: Plan | None) -> Generator[None]:
    """Within the block, use `plan` instead of a measured one, for results that do not depend on timing."""
    token = _pinned.set(plan)
    try:
        yield
    finally:
        _pinned.reset(token)


@cache
def measured_plan(kernel: TwoWays, inputs: int, group_size: int, dtype: torch.dtype, threads: int) -> Plan:
    """Time both ways on a weight with `inputs` K, and return the crossover; once per process (about 0.1 s).

    The two round differently, by less than bfloat16 resolves. Processes may measure different crossovers and then
    differ by that much for numbers of rows in between: see `pinned`.
    """
    outputs = max(64, MEASURED_WEIGHTS // inputs // 64 * 64)
    shape = LinearShape(outputs, inputs, group_size)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        q = torch.randint(16, (outputs, inputs), dtype=torch.uint8, generator=generator)
        ones = torch.ones(outputs, inputs // group_size)
        packed = kernel.pack(GroupwiseWeight(q, ones, 8 * ones, 4), torch.device("cpu"), dtype)
        x = torch.randn(CROSSOVERS[-1], inputs, generator=generator).to(dtype)
        exact_enough = (torch.float32,) if dtype == torch.float32 else (torch.float32, torch.bfloat16)
        best = min(exact_enough, key=lambda panel: _seconds(kernel.panels, x, packed, shape, panel))
        for rows in CROSSOVERS:
            if _seconds(kernel.panels, x[:rows], packed, shape, best) < _seconds(
                kernel.unpacking, x[:rows], packed, shape
            ):
                return Plan(rows, best)
    return Plan(NEVER, best)


def _seconds(call: Callable[Arguments, object], *args: Arguments.args, **kwargs: Arguments.kwargs) -> float:
    """Return the shortest of five runs; other load only adds time."""
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        call(*args, **kwargs)
        times.append(time.perf_counter() - start)
    return min(times)
