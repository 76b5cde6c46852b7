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
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from vila_quant.kernels.kernel import LinearShape
from vila_quant.packing.groupwise import GroupwiseWeight

CROSSOVERS = (8, 16, 32, 64, 256)
"""Numbers of rows from which panels may be used; below the first, they never are."""

NEVER = 1 << 40
"""More rows than there are."""

MEASURED_OUTPUTS = 512
"""Outputs of the layer that is timed: enough to hide what is done once per row, as layers do."""

_pinned: ContextVar["Plan | None"] = ContextVar("pinned plan", default=None)


@dataclass(frozen=True)
class Plan:
    """From `panels_from` rows, panels are dequantized to `panel_dtype` and multiplied."""

    panels_from: int
    panel_dtype: torch.dtype


class TwoWays(Protocol):
    """A kernel with both ways; hashable."""

    def panel_dtypes(self, dtype: torch.dtype) -> Sequence[torch.dtype]:
        """Return in which dtypes panels may be faster on this CPU, and exact enough for activations of `dtype`."""
        ...

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
    """Time both ways on a weight with `inputs` K, and return the crossover; once per process (about 0.5 s).

    Nothing is timed if panels cannot be faster. The two round differently, by less than bfloat16 resolves. Processes
    may measure different crossovers and then differ by that much for numbers of rows in between: see `pinned`.
    """
    dtypes = kernel.panel_dtypes(dtype)
    if not dtypes:
        return Plan(NEVER, dtype)
    shape = LinearShape(MEASURED_OUTPUTS, inputs, group_size)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        q = torch.randint(16, (MEASURED_OUTPUTS, inputs), dtype=torch.uint8, generator=generator)
        ones = torch.ones(MEASURED_OUTPUTS, inputs // group_size)
        packed = kernel.pack(GroupwiseWeight(q, ones, 8 * ones, 4), torch.device("cpu"), dtype)
        x = torch.randn(CROSSOVERS[-1], inputs, generator=generator).to(dtype)
        ways = [partial(kernel.panels, x, packed, shape, panel) for panel in dtypes]
        best = dtypes[_fastest(ways)]
        for rows in CROSSOVERS:
            unpacking = partial(kernel.unpacking, x[:rows], packed, shape)
            if _fastest([unpacking, partial(kernel.panels, x[:rows], packed, shape, best)]) == 1:
                return Plan(rows, best)
    return Plan(NEVER, best)


def _fastest(ways: Sequence[Callable[[], object]]) -> int:
    """Return which is fastest: run in turns, five times each, the shortest times count; other load only adds time."""
    if len(ways) == 1:
        return 0
    times = [float("inf")] * len(ways)
    for _ in range(5):
        for i, call in enumerate(ways):
            start = time.perf_counter()
            call()
            times[i] = min(times[i], time.perf_counter() - start)
    return times.index(min(times))
