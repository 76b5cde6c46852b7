"""How long a call takes on a GPU, launches included."""

import statistics
from collections.abc import Callable

import torch

REPETITIONS = 30


def time_once(call: Callable[[], object]) -> float:
    """Return the milliseconds between an event before `call` and one after it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median of many calls, after five to warm up."""
    for _ in range(5):
        call()
    return statistics.median(time_once(call) for _ in range(REPETITIONS))
