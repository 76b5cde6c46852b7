"""numba's decorators with Python types and one set of options, and conversions from PyTorch."""

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numba
import numpy as np
import torch
from numba.core.event import Event, Listener, register
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger("vila_quant")

Function = TypeVar("Function", bound=Callable[..., object])
Arguments = ParamSpec("Arguments")

FAST = {"reassoc", "contract", "nsz"}
"""Sums may be reordered; NaN and infinity are preserved."""


def _use_threads_of_pytorch() -> None:
    """Make numba use PyTorch's own copy of OpenMP, if any: idle threads of two copies would compete for cores."""
    folder = Path(torch.__file__).parent
    for library in (*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _start_threads() -> int:
    """Start numba's threads and return their number. PyTorch keeps its own, which numba sets if they share OpenMP."""
    number = torch.get_num_threads()
    started = numba.get_num_threads()
    torch.set_num_threads(number)
    return started


class _Announcement(Listener):
    """Says once per process that functions of this package are being compiled. Cached ones load silently."""

    def __init__(self) -> None:
        self._is_made = False

    def on_start(self, event: Event) -> None:
        function = (event.data or {})["dispatcher"].py_func
        if not self._is_made and function.__module__.startswith("vila_quant."):
            self._is_made = True
            logger.warning("Compiling the CPU kernels, which takes about half a minute. Later runs use a cache.")

    def on_end(self, event: Event) -> None:
        pass


register("numba:compile", _Announcement())
_use_threads_of_pytorch()
_STARTED_WITH = _start_threads()

prange = cast("Callable[[int], range]", numba.prange)
"""A range whose iterations are distributed over threads, in a `parallel` function."""


def compiled(function: Function) -> Function:
    """Compile for this CPU on the first call, which takes seconds; the result is cached on disk."""
    return _compile(function, parallel=False)


def parallel(function: Function) -> Function:
    """Like `compiled`, but distribute the iterations of a `prange` over threads."""
    return _compile(function, parallel=True)


def _compile(function: Function, *, parallel: bool) -> Function:
    try:
        return cast("Function", numba.njit(parallel=parallel, cache=True, error_model="numpy", fastmath=FAST)(function))
    except RuntimeError:  # no cache folder is writable: each process compiles again
        return cast("Function", numba.njit(parallel=parallel, error_model="numpy", fastmath=FAST)(function))


def vector_code(function: Callable[Concatenate[Any, Arguments], Any]) -> Callable[Arguments, Any]:
    """Make a compiled function from one that generates LLVM code; its first parameter is numba's typing context."""
    return cast("Callable[Arguments, Any]", intrinsic(function))


def share_threads() -> int:
    """Let `parallel` functions use as many threads as PyTorch, if numba was started with that many; return how many."""
    threads = min(torch.get_num_threads(), _STARTED_WITH)
    numba.set_num_threads(threads)
    return threads


def as_floats(x: Tensor) -> NDArray[np.float32]:
    """Return a CPU tensor as float32 for a compiled function. Raises RuntimeError if it requires a gradient."""
    return x.to(torch.float32).contiguous().numpy()


def as_numbers(x: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Return the memory of a float32 or bfloat16 CPU tensor for a compiled function (see `numbers.Numbers`)."""
    return x.numpy() if x.dtype == torch.float32 else x.view(torch.uint16).numpy()
