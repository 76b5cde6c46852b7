"""`.bin` and `.pt` files: tensors of a pickle, without running any of it (see `pickle_machine`)."""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vila_core.checkpoint.tensors.headers import DTYPE_BITS, MAX_WEIGHT_FILE_BYTES, TensorEntry
from vila_core.checkpoint.tensors.pickle_machine import ITEM_BYTES, OtherTensor, StoredTensor
from vila_core.checkpoint.tensors.torch_files import read_torch_file
from vila_core.errors import CheckpointError, shown
from vila_core.input_files import Content, open_input

if TYPE_CHECKING:
    import torch

_MAX_REPEATS = 16
"""How often tensors may share their numbers, on average: tied weights share once."""
_MAX_ITEMS = 1_000_000


def read_pickle_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors in the state dict at `path`, without torch. Raises `CheckpointError` as `load_pickle` does."""
    entries: dict[str, TensorEntry] = {}
    for name, tensor in _state_dict(path, read_torch_file(path).content).items():
        if tensor.dtype not in DTYPE_BITS:
            raise CheckpointError(f"{path}: tensor '{name}' has dtype torch.complex128, which is not supported.")
        entries[name] = TensorEntry(path, name, tensor.dtype, tensor.shape, None)
    return entries


def load_pickle(path: Path) -> "dict[str, torch.Tensor]":
    """Return the tensors (CPU, memory-mapped) in the state dict at `path`.

    Raises:
        CheckpointError: the file is missing or damaged, contains code, or is not a flat mapping from names to dense
            tensors.
    """
    file = read_torch_file(path)
    tensors = _state_dict(path, file.content)
    mapping = _map(path)
    return {name: _materialize(tensor, mapping, file.starts) for name, tensor in tensors.items()}


def unpickle(path: Path) -> object:
    """Return the content of the file at `path`: tensors (CPU, memory-mapped), containers, numbers, strings.

    Raises:
        CheckpointError: the file is missing or damaged, or contains anything else.
    """
    file = read_torch_file(path)
    mapping, count = _map(path), 0

    def build(value: object) -> object:  # `read_torch_file` limits the depth
        nonlocal count
        count += 1
        if count > _MAX_ITEMS:
            raise CheckpointError(f"{path} holds millions of values. Check where it is from.")
        if isinstance(value, dict):
            return {key: build(item) for key, item in cast(dict[object, object], value).items()}
        if isinstance(value, list):
            return [build(item) for item in cast(list[object], value)]
        if isinstance(value, tuple):
            return tuple(build(item) for item in cast(tuple[object, ...], value))
        if isinstance(value, OtherTensor):
            raise CheckpointError(f"{path}: a tensor is {value.kind}; expected dense tensors.")
        return _materialize(value, mapping, file.starts) if isinstance(value, StoredTensor) else value

    return build(file.content)


def is_dense(tensor: "torch.Tensor") -> bool:
    """Return whether a tensor is dense and has data."""
    import torch

    return tensor.layout == torch.strided and not tensor.is_meta


def _state_dict(path: Path, content: object) -> dict[str, StoredTensor]:
    if isinstance(content, Mapping) and not any(
        isinstance(value, StoredTensor | OtherTensor) for value in cast(Mapping[object, object], content).values()
    ):
        content = cast(Mapping[object, object], content).get("state_dict", content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict (names to tensors).")
    tensors: dict[str, StoredTensor] = {}
    for name, value in cast(Mapping[object, object], content).items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor | OtherTensor):
            raise CheckpointError(
                f"{path}: entry {shown(name)} is a {type(value).__name__}; expected names mapped to tensors."
            )
        if isinstance(value, OtherTensor):
            raise CheckpointError(f"{path}: tensor '{name}' is {value.kind}; expected dense tensors.")
        tensors[name] = value
    claimed = sum(tensor.numel * ITEM_BYTES[tensor.dtype] for tensor in tensors.values())
    stored = sum({tensor.storage.key: tensor.storage.nbytes for tensor in tensors.values()}.values())
    if claimed > _MAX_REPEATS * stored + 2**30:
        raise CheckpointError(f"{path} is damaged: its tensors repeat the same numbers many times. Download it again.")
    return tensors


def _map(path: Path) -> mmap.mmap:
    """Return the file's bytes as private memory, which is read when it is used."""
    with open_input(path, max_bytes=MAX_WEIGHT_FILE_BYTES, content=Content.ARCHIVE) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _materialize(tensor: StoredTensor, mapping: mmap.mmap, starts: Mapping[str, int]) -> "torch.Tensor":
    import torch

    from vila_core.checkpoint.tensors.dtypes import DTYPES

    dtype, item = DTYPES.get(tensor.dtype, torch.complex128), ITEM_BYTES[tensor.dtype]
    if not tensor.numel:
        return torch.empty(tensor.shape, dtype=dtype)
    start = starts[tensor.storage.key] + tensor.offset * item
    raw = torch.frombuffer(mapping, dtype=torch.uint8, count=tensor.span * item, offset=start)
    raw = raw if start % item == 0 else raw.clone()
    return raw.view(dtype).as_strided(tensor.shape, tensor.stride)
