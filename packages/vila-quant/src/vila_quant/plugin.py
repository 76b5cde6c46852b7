"""The plugin of vila-quant: formats, quantizers, kernels and the command `vila quant`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl
from vila_core.plugins.lazy import lazy_object
from vila_core.plugins.lazy_formats import LazyFormat, LazyQuantizedFormat

if TYPE_CHECKING:
    from vila_core.plugins.hookspecs import CheckpointFormat
    from vila_quant.awq.method import BlockQuantizer
    from vila_quant.kernels import MatmulKernel

VILA_HOOK_API = 2


@hookimpl
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """Formats of quantized checkpoints: AutoAWQ's and TinyChat's."""
    return (
        LazyQuantizedFormat("awq", "vila_quant.formats.awq:AwqFormat"),
        LazyFormat("tinychat", "vila_quant.formats.tinychat:TinyChatFormat"),
    )


@hookimpl
def vila_quantizers() -> Sequence[BlockQuantizer]:
    """AWQ as published, our improved search, and plain rounding."""
    from vila_quant.awq.methods import METHODS

    return tuple(METHODS.values())


@hookimpl
def vila_kernels() -> Sequence[MatmulKernel]:
    """Kernels for int4 weights."""
    from vila_quant.kernels.builtin import KERNELS

    return KERNELS


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila quant`."""
    return (
        Command("quant", "Quantize models to 4 bits, and measure the loss.", lazy_object("vila_quant.cli.main:app")),
    )
