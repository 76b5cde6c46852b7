"""`Checkpoint`: the config and the index of the weights of a folder, without tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.config import VilaConfig
from vila_core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn


class Weights(Protocol):
    """Tensors by canonical name, in files (`WeightIndex`) or in memory (`MemoryWeights`)."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]: ...

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor on `device`), one tensor held at a time."""
        ...

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes in chunks), each to be consumed before the next."""
        ...


@dataclass(frozen=True)
class RawParts:
    """The JSON configs of the parts as found, including training settings, so that writing loses nothing."""

    language_model: dict[str, object] = field(default_factory=dict[str, object])
    vision_tower: dict[str, object] = field(default_factory=dict[str, object])
    preprocessor: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Quantization:
    """How the weights of a checkpoint are quantized.

    Attributes:
        method: one line for people, such as "awq, 4 bits, groups of 128".
        replace_modules: replaces modules with quantized weights, in a network on the meta device, by modules that fit
            the checkpoint's tensors. Tensors declared as float32 get the dtype of the loaded model, others keep theirs.
            A module that needs its tensors in another form after loading is a `BufferOwner`.
        config: written as `quantization_config` for Hugging Face's readers; empty if they cannot read the weights.
        packed: by tensor name, the number of model weights stored in the tensor (0 for scales and zeros). These tensors
            keep their stored size, whatever dtype the model is loaded in.
    """

    method: str
    replace_modules: Callable[[nn.Module], None]
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    packed: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its folder.
        format: name of the format that read it.
        config: of the model.
        weights: index of the tensors.
        tokenizer_path: folder with the tokenizer's files.
        raw_config: the root config as found.
        license: as stated by the model card or license file, if at all.
        chat_template: the tokenizer's own Jinja template, if any.
        raw_parts: configs of the parts as found.
        quantization: how the weights are quantized, None if they are not.
        adapter: folder of the LoRA adapter that is merged into the weights as they are read, if any.
    """

    path: Path
    format: str
    config: VilaConfig
    weights: Weights
    tokenizer_path: Path
    raw_config: dict[str, object]
    license: str | None = None
    chat_template: str | None = None
    raw_parts: RawParts = RawParts()
    quantization: Quantization | None = None
    adapter: Path | None = None


def require_mergeable(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for quantized weights: an adapter cannot be merged into them."""
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.path} is quantized ({checkpoint.quantization.method}): an adapter cannot be merged into it. "
            "Merge it into the unquantized weights first (vila convert --lora-path), then quantize."
        )


def require_no_head(checkpoint: Checkpoint, format_name: str, instead: str = "vila-u") -> None:
    """Raise `CheckpointError` for a model that draws, which most formats cannot represent; `instead` can."""
    if checkpoint.config.generation_head is not None:
        raise CheckpointError(
            f"{checkpoint.path} is a model that draws (generation head '{checkpoint.config.generation_head.name}'), "
            f"which format '{format_name}' cannot represent. Write it as '{instead}'."
        )


def require_unquantized(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for quantized weights, which formats for unquantized weights cannot represent."""
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.path} is quantized ({checkpoint.quantization.method}); the format needs unquantized weights. "
            "Convert the checkpoint that it was made from."
        )
