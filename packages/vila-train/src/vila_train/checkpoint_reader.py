"""Reads checkpoints of torch.distributed.checkpoint without running code from them.

Their `.metadata` says which tensors there are and in which files. It is a pickle, which could call any function;
here it can only make the classes that torch writes there for tensors, which are loaded with `weights_only`. Values of
other types (`BytesStorageMetadata`) are not: we write none, and torch unpickles them.
"""

import pickle
from pathlib import Path, PosixPath
from typing import Any, cast

import torch
from torch.distributed.checkpoint import metadata as written
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo  # pyright: ignore[reportPrivateUsage]
from torch.serialization import _get_layout  # pyright: ignore[reportPrivateUsage]

from vila_core.input_files import open_regular_file
from vila_train.errors import TrainingError

_CLASSES = (
    written.ChunkStorageMetadata,
    written.Metadata,
    written.MetadataIndex,
    written.StorageMeta,
    written.TensorProperties,
    written.TensorStorageMetadata,
    written._MEM_FORMAT_ENCODING,  # pyright: ignore[reportPrivateUsage]
    _StorageInfo,
    _get_layout,  # finds "torch.strided" among torch's layouts
    torch.Size,
)
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(one.__module__, one.__name__): one for one in _CLASSES},
    **{(module, "PosixPath"): PosixPath for module in ("pathlib", "pathlib._local")},  # by version of Python
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no checkpoint needs")
        return _ALLOWED[module_name, global_name]


class CheckpointReader(FileSystemReader):
    """Reads the files in a folder, and no others."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> written.Metadata:
        """Return which tensors the checkpoint has, and where.

        Raises:
            TrainingError: a file is missing or cannot be read, or torch did not write that.
        """
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            with open_regular_file(path)[0] as file:
                metadata = cast("written.Metadata", _Unpickler(file).load())
            _require_own_files(metadata, path.parent)
        except OSError as error:
            raise TrainingError(f"{path} cannot be read: {error.strerror or error}.") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise TrainingError(f"{path} was damaged or tampered with: {error}.") from error
        metadata.storage_meta = metadata.storage_meta or written.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _require_own_files(metadata: written.Metadata, folder: Path) -> None:
    """Raise `ValueError` or `AttributeError` unless all tensors are in files of the checkpoint's folder."""
    if not isinstance(metadata.state_dict_metadata, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError("it has no list of tensors")
    for info in metadata.storage_data.values():
        if not info.relative_path.endswith(".distcp") or "/" in info.relative_path:
            raise ValueError(f"{info.relative_path} is no file of a checkpoint")
        file = folder / info.relative_path
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ValueError(f"{info.relative_path} is not a regular file")
