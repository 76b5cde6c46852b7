"""Limits of the hardware, measured: how fast it reads memory and multiplies matrices."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vila_core.device_memory import free_bytes

READ_BYTES = {"cuda": 2 << 30, "cpu": 1 << 29}
"""Size of the buffer that is read, much more than any cache holds."""
SQUARE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of the matrices that are multiplied."""
REPEATS = 5


@dataclass(frozen=True)
class Limits:
    """Bytes read per second, and operations per second in a product (a multiplication and an addition are two)."""

    bytes_per_second: float
    operations_per_second: float


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Return the best rates of a few ways to read, and of a large product in `dtype`."""
    return Limits(_bytes_per_second(device), _operations_per_second(device, dtype))


def _bytes_per_second(device: torch.device) -> float:
    free = free_bytes(device)
    size = min(READ_BYTES[device.type], (free or READ_BYTES[device.type]) // 8)
    numbers = torch.ones(max(size // 4, 1 << 20), device=device)
    halves = numbers.view(2, -1)
    reads: tuple[tuple[Callable[[], object], int], ...] = (
        (numbers.sum, numbers.nbytes),
        (numbers.view(torch.int64).sum, numbers.nbytes),
        (numbers.amax, numbers.nbytes),
        (lambda: torch.dot(halves[0], halves[1]), numbers.nbytes),
        (lambda: halves[0].copy_(halves[1]), numbers.nbytes),  # reads one half and writes the other
    )
    return max(count / _fastest(call, device) for call, count in reads)


def _operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    side = SQUARE[device.type]
    a = torch.full((side, side), 0.5, device=device, dtype=dtype)
    a += torch.rand((side, 1), device=device, dtype=dtype)  # equal bits everywhere would let the chip clock higher
    return 2 * side**3 / _fastest(lambda: a @ a.T, device)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of some calls, after one to warm up."""
    call()
    times: list[float] = []
    for _ in range(REPEATS):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
