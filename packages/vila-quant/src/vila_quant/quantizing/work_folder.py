"""The working folder of a run, beside its output: atomically written steps, from which a killed run resumes."""

import hashlib
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from filelock import FileLock, Timeout
from torch import Tensor

from vila_core.checkpoint import WeightIndex
from vila_core.checkpoint.json_files import read_json
from vila_core.checkpoint.new_folder import write_json
from vila_core.checkpoint.tensors.index import index_folder
from vila_core.checkpoint.tensors.memory import MemoryWeights
from vila_core.checkpoint.tensors.shard_writer import ShardWriter
from vila_core.errors import CheckpointError
from vila_core.new_file import new_file
from vila_core.settings_changes import describe_changes
from vila_quant.errors import QuantizationError

MANIFEST = "manifest.json"
RECORD = "record.json"
LOCK = "lock"


class WorkFolder:
    """Stores steps by name, each with tensors and a record.

    Args:
        out: the run's output folder; the hidden working folder is beside it.
        manifest: everything the run depends on, as JSON values.
        restart: discard what is there.

    Raises:
        QuantizationError: there is unfinished work of a run with another manifest, or another process is at work.
    """

    def __init__(self, out: Path, manifest: Mapping[str, object], *, restart: bool = False):
        self.path = out.parent / f".{out.name}.quantizing"
        self.digest = digest(manifest)
        self._out = out
        self._lock = FileLock(self.path / LOCK, timeout=0)
        stated = cast("dict[str, object]", json.loads(json.dumps(manifest)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if restart:
                self._clear()
            if (self.path / MANIFEST).exists():
                self._require_same(read_json(self.path / MANIFEST), stated)
            with new_file(self.path / MANIFEST) as file:
                write_json(file, stated)
        except Timeout:
            raise QuantizationError(
                f"Another process is quantizing into {out}. Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def has(self, step: str) -> bool:
        """Return whether a step is finished."""
        return (self.path / step / RECORD).exists()

    def save(self, step: str, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
        """Save a finished step, replacing one of that name. Raises `CheckpointError` if the disk is full."""
        part = self.path / f"{step}.part"
        shutil.rmtree(part, ignore_errors=True)
        weights = MemoryWeights(tensors)
        try:
            part.mkdir()
            if tensors:
                with ShardWriter(part, weights.entries) as writer:
                    for name, chunks in weights.stream():
                        writer.write(name, chunks)
            write_json(part / RECORD, record)
            shutil.rmtree(self.path / step, ignore_errors=True)
            part.rename(self.path / step)
        except OSError as error:
            raise CheckpointError(
                f"{part} cannot be written: {error.strerror or error}. Free some space, then run it again to continue."
            ) from error

    def tensors(self, step: str) -> WeightIndex:
        """Return the tensors of a finished step."""
        folder = self.path / step
        return WeightIndex(index_folder(folder) if (folder / "model.safetensors").exists() else {})

    def record(self, step: str) -> dict[str, object]:
        """Return the record of a finished step."""
        return read_json(self.path / step / RECORD)

    @contextmanager
    def finishing(self) -> Generator[None]:
        """Remove the folder after the block; if it fails, raise `CheckpointError`, which says that it is kept."""
        try:
            yield
        except (CheckpointError, OSError) as error:
            if isinstance(error, CheckpointError):
                problem = str(error)
            else:
                problem = f"{self._out} cannot be written: {error.strerror or error}. Free some space."
            raise CheckpointError(
                f"{problem} Finished steps are kept in {self.path}: run it again to continue."
            ) from error
        self._lock.release()
        shutil.rmtree(self.path)

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()

    def _require_same(self, found: Mapping[str, object], stated: Mapping[str, object]) -> None:
        if changes := describe_changes(found, stated):
            raise QuantizationError(
                f"{self.path} holds unfinished work of another run: {changes[0]}. "
                "Run it as before to continue, or with --restart to start over."
            )


def digest(manifest: Mapping[str, object]) -> str:
    """Return the SHA-256 of a manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
