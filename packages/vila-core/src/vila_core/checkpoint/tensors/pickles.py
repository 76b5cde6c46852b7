"""`.bin` and `.pt` files, read with torch's weights-only unpickler, which runs no code and refuses all else."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from vila_core.errors import CheckpointError


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors (CPU, memory-mapped where the file allows) in the state dict at `path`.

    Raises:
        CheckpointError: the file is missing or damaged, contains code, or is not a flat mapping from names to dense
            tensors.
    """
    content = unpickle(path)
    if isinstance(content, Mapping) and not any(
        isinstance(value, torch.Tensor) for value in cast(Mapping[object, object], content).values()
    ):
        content = cast(Mapping[object, object], content).get("state_dict", content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict (names to tensors).")
    tensors: dict[str, torch.Tensor] = {}
    for name, value in cast(Mapping[object, object], content).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is a {type(value).__name__}; expected names mapped to tensors."
            )
        if not is_dense(value):
            raise CheckpointError(
                f"{path}: tensor '{name}' is {'without data' if value.is_meta else 'sparse'}; expected dense tensors."
            )
        tensors[name] = value
    return tensors


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is dense and has data, which a pickle does not guarantee."""
    return tensor.layout == torch.strided and not tensor.is_meta


def unpickle(path: Path) -> object:
    """Return the content of the file at `path`: tensors (CPU, memory-mapped if possible), containers, numbers, strings.

    Raises:
        CheckpointError: the file is missing or damaged, or contains anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Download the checkpoint again.")
    try:
        # Only files in the zip layout can be memory-mapped; torch < 1.6 wrote another.
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types that the unpickler then refuses
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        lines = [
            line for line in str(error).splitlines() if line.strip() and not line.startswith("Check the documentation")
        ]
        reason = lines[-1] if lines else "not a weights-only pickle"
        raise CheckpointError(
            f"{path} was refused: it holds more than tensors, and pickles can run code ({_short(reason)}). "
            "Nothing of it was executed. Ask its author for a safetensors file."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
        # torch raises all of these for truncated or damaged files.
        raise CheckpointError(
            f"{path} is damaged or not a torch file: {_short(str(error))}. Download it again."
        ) from None


def _short(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else "no details"
    return first[:200]
