"""Fingerprints of a model's files: they notice other weights at the same path, and read only a part of large files."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.hub import UNWANTED
from vila_core.checkpoint.tensors.headers import read_header
from vila_core.errors import CheckpointError
from vila_core.input_files import open_regular_file

SMALL_FILE = 8 * 1024 * 1024
"""Files up to this size are read completely."""

TENSOR_WINDOWS, WINDOW = 4, 4096
"""What is read of each tensor of a larger safetensors file: evenly spaced windows, in bytes. Training changes a tensor
everywhere."""

HEADER, WINDOWS = 1024 * 1024, 1024
"""What is read of other large files, such as pickles: their beginning, in bytes, and evenly spaced windows."""

_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model")
"""Configs and tokenizers."""


def checkpoint_files(checkpoint: Checkpoint) -> list[Path]:
    """Return the files that the model depends on: its weights, and configs and tokenizer files beside them, sorted."""
    files = {entry.file for entry in checkpoint.weights.entries.values()}
    folders = {checkpoint.path, checkpoint.tokenizer_path, *(file.parent for file in files)}
    beside = {path for folder in folders for path in folder.iterdir() if _is_config(path)}
    adapter = set() if checkpoint.adapter is None else {*checkpoint.adapter.iterdir()}
    return sorted(path for path in {*files, *beside, *adapter} if path.is_file())


def _is_config(path: Path) -> bool:
    matches = functools.partial(fnmatch, path.name)
    return any(map(matches, _BESIDE_WEIGHTS)) and not any(map(matches, (".*", *UNWANTED)))


def weight_fingerprints(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the fingerprint of each file of weights in the checkpoint's folder, by its relative name.

    Raises:
        CheckpointError: one cannot be read.
    """
    files = sorted({entry.file for entry in checkpoint.weights.entries.values()})
    inside = [file for file in files if file.is_relative_to(checkpoint.path)]
    return {file.relative_to(checkpoint.path).as_posix(): file_fingerprint(file) for file in inside}


def changed_file(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Return the name of a changed, new or missing file, by its fingerprint; None if all files are the same."""
    return next((name for name in {**before, **now} if before.get(name) != now.get(name)), None)


def file_fingerprint(path: Path) -> str:
    """Return a digest of a model's file, wherever it is: of its size, and of all or a part of its bytes.

    Files up to 8 MiB are read completely. Of a larger safetensors file, the header and up to 16 KiB of each tensor are
    read; of other large files, the first MiB and 4 MiB of evenly spaced windows. A file is read once per process,
    unless its size or date changes.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        status = path.stat()
        return _fingerprint(path.absolute(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


@functools.lru_cache(maxsize=4096)
def _fingerprint(path: Path, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256(f"{size} ".encode())
    with open_regular_file(path)[0] as file:
        for start, length in [(0, size)] if size <= SMALL_FILE else _windows(path, size):
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def _windows(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of what is read of a large file."""
    if path.suffix == ".safetensors" and (tensors := _tensors(path)):
        yield 0, min(offset for offset, _ in tensors)  # the header
        for offset, length in tensors:
            yield from _spread(offset, length, TENSOR_WINDOWS)
        return
    yield 0, HEADER
    yield from _spread(0, size, WINDOWS)


def _tensors(path: Path) -> list[tuple[int, int]]:
    """Return (start, length) of each tensor in a safetensors file; none if it is damaged."""
    try:
        return [(entry.offset or 0, entry.nbytes) for entry in read_header(path).values()]
    except CheckpointError:
        return []


def _spread(start: int, length: int, windows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of so many windows from the first to the last of `length` bytes, or of all of them."""
    if length <= windows * WINDOW:
        yield start, length
        return
    for number in range(windows):
        yield start + (length - WINDOW) * number // (windows - 1), WINDOW
