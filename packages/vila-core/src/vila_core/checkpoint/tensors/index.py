"""Index of a checkpoint's weights: canonical name -> file, dtype, shape; tensors are read one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.checkpoint.json_files import read_section
from vila_core.checkpoint.tensors.headers import TensorEntry, read_header
from vila_core.checkpoint.tensors.pickles import read_pickle_header
from vila_core.errors import CheckpointError, ConfigError, shown
from vila_core.file_names import require_file_name
from vila_core.input_files import find_unfinished

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"


@dataclass(frozen=True)
class WeightIndex:
    """Locations of a checkpoint's tensors by canonical name (the model's state-dict name)."""

    entries: Mapping[str, TensorEntry]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> TensorEntry:
        return self.entries[name]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in the order they are first named."""
        return tuple(dict.fromkeys(entry.file for entry in self.entries.values()))

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def with_prefix(self, prefix: str) -> dict[str, TensorEntry]:
        """The tensors whose names start with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): entry for name, entry in self.entries.items() if name.startswith(prefix)}

    def shards(self, device: "torch.device | str" = "cpu") -> Iterator[tuple[str, "torch.Tensor"]]:
        """Yield (canonical name, tensor on `device` in its stored dtype), file by file, in file order.

        Host memory holds only the tensor that is being read (a pickle is memory-mapped).

        Raises:
            CheckpointError: a file changed or cannot be read.
        """
        from vila_core.checkpoint.tensors.reading import read_tensors

        for file in self.files:
            yield from read_tensors(
                file, {name: entry for name, entry in self.entries.items() if entry.file == file}, device
            )

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (canonical name, its bytes in chunks), file by file, for copying. Consume each before the next.

        Raises:
            CheckpointError: a file changed or cannot be read.
        """
        from vila_core.checkpoint.tensors.copying import stream_bytes

        for file in self.files:
            yield from stream_bytes(file, {name: entry for name, entry in self.entries.items() if entry.file == file})

    def read(self, name: str, device: "torch.device | str" = "cpu") -> "torch.Tensor":
        """Return one tensor on `device` in its stored dtype."""
        from vila_core.checkpoint.tensors.reading import read_tensors

        entry = self.entries[name]
        return next(read_tensors(entry.file, {name: entry}, device))[1]


def index_folder(folder: Path, rename: Callable[[str], str] = lambda name: name) -> dict[str, TensorEntry]:
    """Return the tensors in `folder` by `rename`d name: safetensors, single or sharded, else weights-only pickles.

    Raises:
        CheckpointError: there are no weights, a file is damaged, the index names files outside the folder or wrong
            tensors.
    """
    entries: dict[str, TensorEntry] = {}
    for file in _weight_files(folder):
        header = read_header(file) if file.suffix == ".safetensors" else read_pickle_header(file)
        for key, entry in header.items():
            name = rename(key)
            if name in entries:
                raise CheckpointError(f"Tensor '{name}' is in both {entries[name].file} and {file}. Keep one of them.")
            entries[name] = entry
    _check_index(folder, {entry.key for entry in entries.values()})
    return entries


def has_weights(folder: Path) -> bool:
    """Return whether `folder` has weights under the names that `index_folder` knows."""
    return any(
        (folder / f"{name}{suffix}").exists()
        for name in (SAFETENSORS_NAME, PICKLE_NAME)
        for suffix in ("", ".index.json")
    )


def _weight_files(folder: Path) -> Sequence[Path]:
    for name in (SAFETENSORS_NAME, PICKLE_NAME):
        if (folder / name).exists():
            return [folder / name]
        if (folder / f"{name}.index.json").exists():
            shards = dict.fromkeys(_weight_map(folder / f"{name}.index.json").values())
            return [folder / shard for shard in shards]
    unfinished = find_unfinished(folder / SAFETENSORS_NAME) or find_unfinished(folder / PICKLE_NAME)
    if unfinished is not None:
        raise CheckpointError(f"{folder} holds no weights; '{unfinished.name}' is an unfinished download. Finish it.")
    raise CheckpointError(
        f"{folder} holds no weights: expected {SAFETENSORS_NAME} or {SAFETENSORS_NAME}.index.json (or {PICKLE_NAME})."
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Return the file of each tensor in an index. Raises `CheckpointError` unless all are plain names."""
    weight_map = read_section(path).section("weight_map")
    if not weight_map.values:
        raise CheckpointError(f"{path} names no tensor.")
    result: dict[str, str] = {}
    for tensor in weight_map.values:
        name = weight_map.string(tensor)
        try:
            result[tensor] = require_file_name(name, "")
        except ConfigError:
            raise CheckpointError(
                f"{path} places tensor '{tensor}' in {shown(name)}; expected the plain name of a file beside the index."
            ) from None
    return result


def _check_index(folder: Path, found: set[str]) -> None:
    for name in (SAFETENSORS_NAME, PICKLE_NAME):
        path = folder / f"{name}.index.json"
        if (folder / name).exists():
            return
        if path.exists():
            missing = [tensor for tensor in _weight_map(path) if tensor not in found]
            if missing:
                raise CheckpointError(
                    f"{path} names {len(missing)} tensors that its files do not hold, '{missing[0]}' first."
                )
            return
