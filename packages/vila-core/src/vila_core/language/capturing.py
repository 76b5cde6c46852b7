"""Capture calls in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE  # pyright: ignore[reportPrivateUsage]

Result = TypeVar("Result")


@torch.inference_mode(False)
@torch.no_grad()
def capture(
    call: Callable[[], Result], device: torch.device, pool: _POOL_HANDLE | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Compile the kernels of `call` on `device` by calling it, then capture it: return the graph and its results.

    Graphs that are not replayed at the same time may share a `pool` of memory.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = call()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph, result
