"""Speed and memory of training steps, beside what the GPU can do and what a dry run estimates.

Model FLOPs are those of `vila_train.compute.flops`: backward passes of frozen weights are not counted, nor is anything
that is computed twice. They are compared with the data sheet, and with an 8192 x 8192 x 8192 product in the same run:
its best rate (`of_ceiling`), and its rate over a second (`of_sustained`), in which a GPU lowers its clock as it does in
training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch.distributed.fsdp import FSDPModule
from training_steps import Case, Step, Training, meta_case

from vila_core.bench.limits import SQUARE, measure_limits, synchronize
from vila_train import compute
from vila_train.estimates.memory import RowLoad, estimate_memory
from vila_train.loop.optimizer import rate_factor
from vila_train.packing import PackedRow
from vila_train.parallel.world import World

WARM_UP = 2
"""Steps before those that are timed: the first one compiles."""


@dataclass(frozen=True)
class Ceiling:
    """Operations per second of one GPU in products of large matrices, in the precision of the step.

    Attributes:
        burst: the best of a few products.
        sustained: over a second.
        data_sheet: None where it is unknown.
    """

    burst: float
    sustained: float
    data_sheet: float | None

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> "Ceiling":
        """Measure it on `device`."""
        burst = measure_limits(device, dtype).operations_per_second
        return cls(burst, _sustained_flops(device, dtype), compute.peak_flops(device))

    def summary(self) -> dict[str, object]:
        """Return the figures of a report."""
        return {"ceiling_tflops": _tera(self.burst), "sustained_tflops": _tera(self.sustained)}


def _sustained_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the rate of the ceiling's product when it runs for `seconds`: a GPU lowers its clock at high power."""
    side = SQUARE[device.type]
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(20):
            torch.mm(a, b)
        synchronize(device)
        count += 20
    return 2 * side**3 * count / (time.perf_counter() - start)


@dataclass(frozen=True)
class Measured:
    """Results of a case. Rates and bytes are those of one GPU.

    Attributes:
        seconds: of a step, on average.
        host_seconds: until the host has launched it; close to `seconds`, if the GPU waits for the host.
        tokens: of a step, on average.
        flops: model FLOPs of a step.
        peak_bytes: most memory of the GPU that tensors took, weights and optimizer included; None on a CPU.
        reserved_bytes: most memory that PyTorch took from the GPU; None on a CPU.
        estimated_bytes: what a dry run would estimate for `peak_bytes`.
        sharded: whether FSDP was used.
        compile_seconds: of the first step.
        losses: of all steps.
    """

    seconds: float
    host_seconds: float
    tokens: float
    flops: float
    peak_bytes: int | None
    reserved_bytes: int | None
    estimated_bytes: int
    sharded: bool
    compile_seconds: float
    losses: list[float] = field(default_factory=list)

    @classmethod
    def of_ranks(cls, ranks: Sequence["Measured"]) -> "Measured":
        """Return the mean work of all ranks, and the most time and memory that any took."""
        peaks = [one.peak_bytes for one in ranks if one.peak_bytes is not None]
        reserved = [one.reserved_bytes for one in ranks if one.reserved_bytes is not None]
        return cls(
            seconds=max(one.seconds for one in ranks),
            host_seconds=max(one.host_seconds for one in ranks),
            tokens=sum(one.tokens for one in ranks) / len(ranks),
            flops=sum(one.flops for one in ranks) / len(ranks),
            peak_bytes=max(peaks, default=None),
            reserved_bytes=max(reserved, default=None),
            estimated_bytes=max(one.estimated_bytes for one in ranks),
            sharded=ranks[0].sharded,
            compile_seconds=max(one.compile_seconds for one in ranks),
            losses=ranks[0].losses,
        )

    def summary(self, ceiling: Ceiling) -> dict[str, object]:
        """Return the figures of a report."""
        rate = self.flops / self.seconds
        return {
            "tokens_per_second": round(self.tokens / self.seconds),
            "step_ms": round(1e3 * self.seconds, 1),
            "host_ms": round(1e3 * self.host_seconds, 1),
            "tflops": _tera(rate),
            "of_ceiling": round(rate / ceiling.burst, 3),
            "of_sustained": round(rate / ceiling.sustained, 3),
            "of_data_sheet": None if ceiling.data_sheet is None else round(rate / ceiling.data_sheet, 3),
            "peak_gb": None if self.peak_bytes is None else round(self.peak_bytes / 1e9, 2),
            "reserved_gb": None if self.reserved_bytes is None else round(self.reserved_bytes / 1e9, 2),
            "estimated_gb": round(self.estimated_bytes / 1e9, 2),
            "peak_of_estimate": None if self.peak_bytes is None else round(self.peak_bytes / self.estimated_bytes, 3),
            "sharded": self.sharded,
            "first_step_s": round(self.compile_seconds, 1),
            "losses": [round(loss, 3) for loss in self.losses],
        }


def _tera(rate: float) -> float:
    """Return a rate in 10^12 per second, with three digits: a CPU's would round to 0."""
    return float(f"{rate / 1e12:.3g}")


def estimate(case: Case, world: World, load: RowLoad) -> int:
    """Return the peak that a dry run estimates for a case whose largest rows are `load`."""
    memory = torch.cuda.get_device_properties(world.device).total_memory if world.device.type == "cuda" else None
    return estimate_memory(
        meta_case(case), case.compute, load, world_size=world.size, adapter=case.adapter, gpu_bytes=memory
    ).peak


def _load(row: PackedRow, rows: int) -> RowLoad:
    tiles = sum(len(medium.tiles) for medium in row.batch.media)
    return RowLoad(row.num_tokens, tiles, row.num_labels, rows)


def _largest(loads: Sequence[RowLoad]) -> RowLoad:
    return RowLoad(
        tokens=max(load.tokens for load in loads),
        tiles=max(load.tiles for load in loads),
        labels=max(load.labels for load in loads),
        rows=loads[0].rows,
    )


def measure(training: Training, steps: int) -> Measured:
    """Run `WARM_UP` steps and then `steps` timed ones; the learning rate follows its schedule over all of them."""
    case, world = training.case, training.world
    model_flops = compute.ModelFlops.of(training.network)
    done: list[Step] = []
    loads: list[RowLoad] = []
    tokens = flops = 0.0
    for index, rows in enumerate(islice(training.batches(), WARM_UP + steps)):
        done.append(training.step(rows, rate_factor(case.optimizer, index, WARM_UP + steps)))
        loads += [_load(row, case.rows) for row in rows]
        if index >= WARM_UP:
            tokens += sum(len(row.labels) for row in rows) / steps
            flops += sum(map(model_flops.of_row, rows)) / steps
    on_cuda = world.device.type == "cuda"
    own = Measured(
        seconds=sum(step.seconds for step in done[WARM_UP:]) / steps,
        host_seconds=sum(step.host_seconds for step in done[WARM_UP:]) / steps,
        tokens=tokens,
        flops=flops,
        peak_bytes=torch.cuda.max_memory_allocated() if on_cuda else None,
        reserved_bytes=torch.cuda.max_memory_reserved() if on_cuda else None,
        estimated_bytes=estimate(case, world, _largest(loads)),
        sharded=isinstance(training.trainee, FSDPModule),
        compile_seconds=done[0].seconds,
        losses=[step.loss for step in done],
    )
    return Measured.of_ranks(world.gather(own))
