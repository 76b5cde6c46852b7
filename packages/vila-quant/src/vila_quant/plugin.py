"""What vila-quant adds to VILA Kit. Cheap to import: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl
from vila_quant.awq.methods import METHODS
from vila_quant.kernels.builtin import KERNELS

if TYPE_CHECKING:
    import typer

    from vila_core.checkpoint import Checkpoint
    from vila_core.hookspecs import CheckpointFormat
    from vila_quant.awq.method import BlockQuantizer
    from vila_quant.formats.awq import AwqFormat
    from vila_quant.formats.tinychat import TinyChatFormat
    from vila_quant.kernels import MatmulKernel

VILA_HOOK_API = 1


@dataclass(frozen=True)
class LazyFormat:
    """A checkpoint format, the class `type_name` of `vila_quant.formats.<name>`, imported when it is first asked something."""

    name: str
    type_name: str

    @cached_property
    def _format(self) -> AwqFormat | TinyChatFormat:
        return vars(import_module(f"vila_quant.formats.{self.name}"))[self.type_name]()

    def detect(self, path: Path) -> bool:
        return self._format.detect(path)

    def read(self, path: Path) -> Checkpoint:
        return self._format.read(path)

    def with_shard_bytes(self, limit: int) -> CheckpointFormat:
        return self._format.with_shard_bytes(limit)

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        self._format.write(checkpoint, path)


@hookimpl
def vila_checkpoint_formats() -> Sequence[CheckpointFormat]:
    """Quantized checkpoints: AutoAWQ's and TinyChat's."""
    return (LazyFormat("awq", "AwqFormat"), LazyFormat("tinychat", "TinyChatFormat"))


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
