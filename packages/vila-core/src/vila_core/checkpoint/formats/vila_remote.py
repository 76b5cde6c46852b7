"""Format `vila-remote`: as `vila`, with `model_type: vila` and an `auto_map` to code that is never run."""

from pathlib import Path

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.formats.vila import model_type_at, quantization_at, read_parts
from vila_core.errors import CheckpointError


class VilaRemoteFormat:
    """Releases that include their own model code. Only their configs and weights are read."""

    name = "vila-remote"

    def detect(self, path: Path) -> bool:
        return model_type_at(path) == "vila" and quantization_at(path) is None

    def read(self, path: Path) -> Checkpoint:
        return read_parts(path, self.name)

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        raise CheckpointError(
            "Format 'vila-remote' is read-only, since it consists of 'vila' and code. Write 'vila' or 'nvila'."
        )
