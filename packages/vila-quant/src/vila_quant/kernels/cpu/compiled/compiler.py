"""numba's decorators, with the types of Python and one set of options, and the way from PyTorch to its functions."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numba
import numpy as np
import torch
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])
Arguments = ParamSpec("Arguments")

FAST = {"reassoc", "contract", "nsz"}
"""Sums are taken in any order; NaN and infinity stay what they are."""


def _use_threads_of_pytorch() -> None:
    """Let numba's OpenMP be PyTorch's own copy, where PyTorch brings one: two would keep idle threads spinning on each other's cores."""
    folder = Path(torch.__file__).parent
    for library in (*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _start_threads() -> int:
    """Return how many numba starts. PyTorch keeps its number, which numba sets too where they share OpenMP."""
    number = torch.get_num_threads()
    started = numba.get_num_threads()
    torch.set_num_threads(number)
    return started


_use_threads_of_pytorch()
_STARTED_WITH = _start_threads()

prange = cast("Callable[[int], range]", numba.prange)
"""A range whose turns threads share, in a `parallel` function."""


def compiled(function: Function) -> Function:
    """Compile for this CPU when first called, which takes seconds; the result is kept on disk."""
    return _compile(function, parallel=False)


def parallel(function: Function) -> Function:
    """Do the same, and share the turns of a `prange` among threads."""
    return _compile(function, parallel=True)


def _compile(function: Function, *, parallel: bool) -> Function:
    try:
        return cast("Function", numba.njit(parallel=parallel, cache=True, error_model="numpy", fastmath=FAST)(function))
    except RuntimeError:  # no folder for it can be written: each process compiles anew
        return cast("Function", numba.njit(parallel=parallel, error_model="numpy", fastmath=FAST)(function))


def vector_code(function: Callable[Concatenate[Any, Arguments], Any]) -> Callable[Arguments, Any]:
    """Make a function of compiled code out of one that writes LLVM's: its first parameter is numba's own."""
    return cast("Callable[Arguments, Any]", intrinsic(function))


def share_threads() -> None:
    """Let `parallel` functions run on as many threads as PyTorch, where numba was started with as many."""
    numba.set_num_threads(min(torch.get_num_threads(), _STARTED_WITH))


def as_floats(x: Tensor) -> NDArray[np.float32]:
    """Return a tensor on the CPU for a compiled function. Raises RuntimeError where a gradient is wanted: there is none."""
    return x.to(torch.float32).contiguous().numpy()


def as_numbers(x: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Return the memory of a tensor on the CPU, float32 or bfloat16, for a compiled function (see `numbers.Numbers`)."""
    return x.numpy() if x.dtype == torch.float32 else x.view(torch.uint16).numpy()
