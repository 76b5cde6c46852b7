"""What vila-quant adds to VILA Kit. Cheap to import: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl
from vila_core.plugins.lazy import LazyFormat
from vila_quant.awq.methods import METHODS
from vila_quant.kernels.builtin import KERNELS

if TYPE_CHECKING:
    import typer

    from vila_core.plugins.hookspecs import CheckpointFormat
    from vila_quant.awq.method import BlockQuantizer
    from vila_quant.kernels import MatmulKernel

VILA_HOOK_API = 2


@hookimpl
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """Quantized checkpoints: AutoAWQ's and TinyChat's."""
    return (
        LazyFormat("awq", "vila_quant.formats.awq:AwqFormat"),
        LazyFormat("tinychat", "vila_quant.formats.tinychat:TinyChatFormat"),
    )


@hookimpl
def vila_quantizers() -> Sequence[BlockQuantizer]:
    """AWQ as published, ours, and plain rounding."""
    return tuple(METHODS.values())


@hookimpl
def vila_kernels() -> Sequence[MatmulKernel]:
    """Products with four-bit weights."""
    return KERNELS


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila quant`."""
    return (Command("quant", "Quantize models to four bits, and check what was lost.", _command),)


def _command() -> typer.Typer:
    from vila_quant.cli.main import app

    return app
