"""Checkpoint formats that plugins register without importing them, so that plugins stay cheap to load."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vila_core.plugins.lazy import import_object

if TYPE_CHECKING:
    from vila_core.checkpoint import Checkpoint
    from vila_core.checkpoint.conversion import ShardedFormat
    from vila_core.plugins.hookspecs import CheckpointFormat


@dataclass(frozen=True)
class LazyFormat:
    """A checkpoint format whose module is imported when it is first asked something: `vila --help` needs none of them."""

    name: str
    module: str
    type_name: str

    @cached_property
    def _format(self) -> CheckpointFormat:
        return import_object(f"{self.module}:{self.type_name}")()

    def detect(self, path: Path) -> bool:
        return self._format.detect(path)

    def read(self, path: Path) -> Checkpoint:
        return self._format.read(path)

    def write(self, checkpoint: Checkpoint, path: Path) -> None:
        self._format.write(checkpoint, path)


@dataclass(frozen=True)
class LazyShardedFormat(LazyFormat):
    """One that can limit the size of its files."""

    def with_shard_bytes(self, limit: int) -> CheckpointFormat:
        return cast("ShardedFormat", self._format).with_shard_bytes(limit)
