"""Chooses the kernel of a quantized linear layer, and gives the reason.

The scheme of a layer says how its weights and activations are stored: "int4" layers take the kernels of every plugin
(hook `vila_kernels`), eight-bit layers those of `vila_quant.kernels.builtin`. Of the kernels that accept a layer, the
one with the highest priority runs it. A fallback is never silent: if a better kernel is unavailable on this machine, a
warning names both, once.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

from vila_core.errors import ConfigError, unknown_name
from vila_core.plugins.loader import load_plugins
from vila_quant.kernels.builtin import EIGHT_BIT_KERNELS
from vila_quant.kernels.kernel import (
    SCHEMES,
    EightBitKernel,
    Kernel,
    LinearShape,
    MatmulKernel,
    Scheme,
    Unavailable,
)

if TYPE_CHECKING:
    import torch

LAST_RESORT = 0
"""Priority of the int4 reference kernel, which costs memory and time: choosing it unasked is reported."""


AnyKernel = TypeVar("AnyKernel", bound=Kernel)

_forced: ContextVar[str | None] = ContextVar("forced kernel", default=None)


@contextmanager
def forced(name: str | None) -> Generator[None]:
    """Within the block, layers of the kernel's scheme are loaded for the kernel `name`, or fail. None: no effect.

    with vila_quant.kernels.forced("reference"):
        model = vila_core.load("my-model-awq")
    """
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(shape: LinearShape, device: torch.device, dtype: torch.dtype) -> MatmulKernel:
    """Return the kernel for an int4 layer.

    Raises:
        ConfigError: the forced kernel is unknown or refuses the layer, or no kernel can run it.
    """
    return _choose(all_kernels(), shape, device, dtype)


def choose_eight_bit(shape: LinearShape, device: torch.device, dtype: torch.dtype) -> EightBitKernel:
    """Return the kernel for an eight-bit layer. Raises `ConfigError` as `choose` does."""
    return _choose(eight_bit_kernels(shape.scheme), shape, device, dtype)


def kernels_for(scheme: Scheme) -> Sequence[Kernel]:
    """Return the kernels for layers of a scheme, the highest priority first."""
    return all_kernels() if scheme == "int4" else eight_bit_kernels(scheme)


def all_kernels() -> list[MatmulKernel]:
    """Return the registered int4 kernels, the highest priority first."""
    return _by_priority([cast("MatmulKernel", kernel) for kernel in load_plugins().kernels])


def eight_bit_kernels(scheme: Scheme) -> list[EightBitKernel]:
    """Return the kernels of an eight-bit scheme, the highest priority first."""
    return _by_priority(EIGHT_BIT_KERNELS[scheme])


def scheme_of(name: str) -> Scheme:
    """Return the scheme that the kernel `name` is for. Raises `ConfigError` for an unknown name."""
    names: dict[str, Scheme] = {kernel.name: scheme for scheme in SCHEMES for kernel in kernels_for(scheme)}
    if name not in names:
        raise ConfigError(unknown_name("kernel", name, list(names)))
    return names[name]


def warn_fallback(used: str, better: str, reason: str) -> None:
    """Warn once that the kernel `used` runs instead of `better`."""
    _warn_once(f"Kernel '{used}' runs instead of the faster '{better}': {reason}.")


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _choose(kernels: Sequence[AnyKernel], shape: LinearShape, device: torch.device, dtype: torch.dtype) -> AnyKernel:
    name = _forced.get()
    if name is not None and scheme_of(name) == shape.scheme:
        return _forced_kernel(name, kernels, shape, device, dtype)
    better: list[tuple[str, str]] = []
    for kernel in kernels:
        reason = kernel.refusal(shape, device, dtype)
        if reason is None:
            _report_fallback(kernel, better, shape)
            return kernel
        better.append((kernel.name, reason))
    raise ConfigError(f"No kernel takes {shape} on {device} in {dtype}. `vila-quant kernels` says why.")


def _forced_kernel(
    name: str, kernels: Sequence[AnyKernel], shape: LinearShape, device: torch.device, dtype: torch.dtype
) -> AnyKernel:
    kernel = next(kernel for kernel in kernels if kernel.name == name)
    reason = kernel.refusal(shape, device, dtype)
    if reason is not None:
        activations = f"activations in {str(dtype).removeprefix('torch.')}"
        raise ConfigError(
            f"The kernel '{name}' was requested, but refuses {shape}, {activations}: {reason}. "
            "Leave --kernel out, or request another (`vila-quant kernels` lists them)."
        )
    return kernel


def _report_fallback(kernel: Kernel, better: Sequence[tuple[str, str]], shape: LinearShape) -> None:
    """Warn if kernels before `kernel` are missing something, or if the slow reference is all that is left."""
    missing = [(name, reason) for name, reason in better if isinstance(reason, Unavailable)]
    if missing:
        warn_fallback(kernel.name, missing[0][0], "; ".join(dict.fromkeys(reason for _, reason in missing)))
    elif shape.scheme == "int4" and kernel.priority == LAST_RESORT and better:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in better)
        _warn_once(f"The slow kernel '{kernel.name}' runs {shape}, since no other can ({reasons}).")


def _by_priority(kernels: Sequence[AnyKernel]) -> list[AnyKernel]:
    return sorted(kernels, key=lambda kernel: (-kernel.priority, kernel.name))
