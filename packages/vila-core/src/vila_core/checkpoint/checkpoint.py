"""`Checkpoint`: what reading a folder gives. Config and index of the weights, no tensor."""

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
    """Tensors by canonical name, wherever they lie: in files (`WeightIndex`) or in memory (`MemoryWeights`)."""

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
    """The parts' own JSON configs as found (training leftovers included), so that writing loses nothing."""

    language_model: dict[str, object] = field(default_factory=dict[str, object])
    vision_tower: dict[str, object] = field(default_factory=dict[str, object])
    preprocessor: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Quantization:
    """How the weights of a checkpoint are quantized.

    Attributes:
        method: one line for people, such as "awq, 4 bits, groups of 128".
        replace_modules: replaces, in a network on the meta device, the modules whose weights are quantized by ones that the
            checkpoint's tensors fit. Tensors declared as float32 get the dtype that the model is loaded in, others keep theirs.
            A module that needs its tensors in another form once they are loaded is a `BufferOwner`.
        config: what writers put under `quantization_config` where Hugging Face's readers look for it; empty where they cannot read it.
        packed: by tensor name, of how many weights of the model a tensor is the stored form (of none: scales and zeros). These tensors
            take the bytes that they are stored in, whatever dtype the model is loaded in.
    """

    method: str
    replace_modules: Callable[[nn.Module], None]
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    packed: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    `tokenizer_path` is the folder with the tokenizer's files; `chat_template` the tokenizer's own Jinja template, if any;
    `license` what the model card or license file says, if anything; `raw_config` the root config as found; `quantization` says how
    the weights are quantized, None where they are whole.
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


def require_mergeable(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for quantized weights, into which no adapter can be merged."""
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.path} is quantized ({checkpoint.quantization.method}): an adapter cannot be merged into it. "
            "Merge it into the whole weights first (vila convert --lora-path), then quantize."
        )


def require_whole_weights(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for quantized weights, which the formats of whole weights cannot hold."""
    if checkpoint.quantization is not None:
        raise CheckpointError(
            f"{checkpoint.path} is quantized ({checkpoint.quantization.method}); this format holds whole weights. "
            "Convert the checkpoint that it was made from."
        )
