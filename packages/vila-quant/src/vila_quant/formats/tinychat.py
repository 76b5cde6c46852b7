"""Format `tinychat`: the folders of `vila`, with llm-awq's `NAME-w4-g128-awq-v2.pt` for the language model.

llm-awq writes the file to any `--dump_quant` path and reads it beside the original model. Here it is in the model's
folder or in its `llm/` (as in the released VILA1.5-AWQ folders); it takes precedence over unquantized weights.
The file is a pickle, read by torch's weights-only unpickler, which rejects code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.checkpoint import Checkpoint, TensorEntry, WeightIndex, Weights
from vila_core.checkpoint.checkpoint import require_no_head
from vila_core.checkpoint.formats.vila import index_parts, quantization_at, read_parts, tinychat_files
from vila_core.checkpoint.formats.vila_writer import PARTS, fill_vila
from vila_core.checkpoint.json_files import read_section
from vila_core.checkpoint.new_folder import new_folder
from vila_core.checkpoint.tensors.shard_writer import DEFAULT_SHARD_BYTES
from vila_core.errors import CheckpointError
from vila_quant.formats.awq import layout_at, quantization, source_layout
from vila_quant.formats.config import whole_linears
from vila_quant.formats.layers import QuantizedLayers, find_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX = "llm."
GROUP_SIZE = 128
SUFFIX = "-w4-g128-awq-v2.pt"


@dataclass(frozen=True)
class TinyChatFormat:
    """TinyChat's weights, version 2: int4 in groups of 128; the rest of the model is not quantized."""

    name: str = "tinychat"

    def detect(self, path: Path) -> bool:
        return layout_at(path) == "vila" and quantization_at(path) == "tinychat"

    def read(self, path: Path) -> Checkpoint:
        from vila_quant.formats.tinychat_weights import index_tinychat

        files = tinychat_files(path)
        if len(files) != 1:
            names = ", ".join(str(file.relative_to(path)) for file in files) or "none"
            raise CheckpointError(
                f"{path} must contain one TinyChat file (NAME{SUFFIX}), directly or in llm/; got {names}."
            )
        whole_parts = tuple(part for part in PARTS if part != "llm")
        rest = WeightIndex(index_parts(path, read_section(path / "config.json"), whole_parts))
        weights = index_tinychat(files[0], rest)
        checkpoint = read_parts(path, self.name, WeightIndex(weights.entries))
        return replace(checkpoint, weights=weights, quantization=quantization("TinyChat", find_layers(weights.entries)))

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        """Write a checkpoint with quantized linears. The quantized language model must fit into memory.

        Raises:
            CheckpointError: the model draws, a layer is not int4 in groups of 128 with fp16 scales, the head or tower
                is quantized, or writing the folders fails.
        """
        import torch

        from vila_quant.formats.tinychat_weights import state_dict

        require_no_head(checkpoint, self.name, instead="awq")
        layers = find_layers(checkpoint.weights.entries)
        _require_tinychat(checkpoint, layers)
        entries = checkpoint.weights.entries
        with new_folder(path, sum(entry.nbytes for entry in entries.values())) as folder:
            whole = replace(
                checkpoint, format=source_layout(checkpoint), weights=_Whole(checkpoint.weights), quantization=None
            )
            fill_vila(whole, folder, max_shard_bytes or DEFAULT_SHARD_BYTES)
            tensors = state_dict(checkpoint)
            try:
                torch.save(tensors, folder / "llm" / f"{path.absolute().name}{SUFFIX}")
            except RuntimeError as error:  # torch's error for a full disk
                raise CheckpointError(f"{path} was not written: {error}. Nothing was left behind.") from error


def _require_tinychat(checkpoint: Checkpoint, layers: QuantizedLayers) -> None:
    problems = [
        f"'{layer.name}' has groups of {layer.group_size} with {layer.scales_dtype} scales"
        for layer in layers.groupwise
        if layer.group_size != GROUP_SIZE or layer.scales_dtype != "F16"
    ]
    problems += [f"'{layer.name}' is {layer.kind}" for layer in layers.eight_bits]
    problems += [
        f"'{layer.name}' is quantized" for layer in layers.groupwise if not layer.name.startswith(f"{PREFIX}model.")
    ]
    problems += [
        f"'{PREFIX}{name}' is not quantized" for name in whole_linears(checkpoint.weights.entries) if name != "lm_head"
    ]
    if not layers.groupwise:
        raise CheckpointError(
            f"{checkpoint.path} is not quantized, but format 'tinychat' is for quantized weights. Run: vila-quant awq."
        )
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"Format 'tinychat' needs every linear of the language model's blocks in groups of {GROUP_SIZE} with F16 "
            f"scales, and nothing else quantized: {problems[0]}{more}. Format 'awq' supports this model."
        )


@dataclass(frozen=True)
class _Whole:
    """The weights of a checkpoint without its language model."""

    weights: Weights

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return {name: entry for name, entry in self.weights.entries.items() if not name.startswith(PREFIX)}

    def shards(self, device: "torch.device | str" = "cpu") -> "Iterator[tuple[str, Tensor]]":
        """Yield (name, tensor on `device`)."""
        return ((name, tensor) for name, tensor in self.weights.shards(device) if not name.startswith(PREFIX))

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes in chunks)."""
        return ((name, chunks) for name, chunks in self.weights.stream() if not name.startswith(PREFIX))
