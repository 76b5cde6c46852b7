"""Checkpoint formats that are imported when they are first used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vila_core.plugins.lazy import import_object

if TYPE_CHECKING:
    from vila_core.checkpoint import Checkpoint, Quantization, TensorEntry
    from vila_core.plugins.hookspecs import CheckpointFormat


@runtime_checkable
class QuantizedFormat(Protocol):
    """What a checkpoint format for quantized weights may have besides reading and writing folders."""

    def quantization_of(self, entries: Mapping[str, TensorEntry]) -> Quantization:
        """Return how the weights with these headers are quantized. Raises `CheckpointError`."""
        ...


@dataclass(frozen=True)
class LazyFormat:
    """A checkpoint format that is imported when it is first used. `target` names its class, "package.module:Class"."""

    name: str
    target: str

    @cached_property
    def _format(self) -> CheckpointFormat:
        return import_object(self.target)()

    def detect(self, path: Path) -> bool:
        return self._format.detect(path)

    def read(self, path: Path) -> Checkpoint:
        return self._format.read(path)

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        self._format.write(checkpoint, path, max_shard_bytes=max_shard_bytes)


@dataclass(frozen=True)
class LazyQuantizedFormat(LazyFormat):
    """The same for a format of quantized weights (see `QuantizedFormat`)."""

    def quantization_of(self, entries: Mapping[str, TensorEntry]) -> Quantization:
        assert isinstance(self._format, QuantizedFormat)
        return self._format.quantization_of(entries)
