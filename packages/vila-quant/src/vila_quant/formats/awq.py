"""Format `awq`: linears in AutoAWQ's GEMM layout, which transformers, vLLM and SGLang read.

| layout | `quantization_config` is in |
| --- | --- |
| `vila` | `llm/config.json`: the folder `llm/` is a Hugging Face AWQ checkpoint by itself |
| `vila-u` | the same |
| `nvila` | `config.json`, at the root and in `text_config` |
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vila_core.checkpoint import Checkpoint, Quantization, TensorEntry
from vila_core.checkpoint.checkpoint import require_no_head
from vila_core.checkpoint.formats.nvila import MODEL_TYPES as NVILA_TYPES
from vila_core.checkpoint.formats.nvila import read_nvila
from vila_core.checkpoint.formats.nvila_writer import write_nvila
from vila_core.checkpoint.formats.vila import model_type_at, quantization_at, read_parts, tinychat_files
from vila_core.checkpoint.formats.vila_u import is_vila_u, read_vila_u
from vila_core.checkpoint.formats.vila_u_writer import write_vila_u
from vila_core.checkpoint.formats.vila_writer import write_vila
from vila_core.checkpoint.tensors.shard_writer import DEFAULT_SHARD_BYTES
from vila_core.errors import CheckpointError
from vila_quant.formats.config import AwqConfig, check_awq_config, read_awq_config, write_awq_config
from vila_quant.formats.layers import QuantizedLayers, find_layers

if TYPE_CHECKING:
    from torch import nn

Layout = Literal["vila", "nvila", "vila-u"]
_READERS = {"vila": read_parts, "nvila": read_nvila, "vila-u": read_vila_u}
_WRITERS = {"vila": write_vila, "nvila": write_nvila, "vila-u": write_vila_u}


@dataclass(frozen=True)
class AwqFormat:
    """Int4 linears in GEMM layout; the rest of the model is unquantized or has eight bits.

    Attributes:
        layout: layout of written folders; None for that of the source. Models that draw are written as "vila-u".
    """

    name: str = "awq"
    layout: Layout | None = None

    def detect(self, path: Path) -> bool:
        return layout_at(path) is not None and quantization_at(path) == "awq"

    def read(self, path: Path) -> Checkpoint:
        if spare := tinychat_files(path):
            raise CheckpointError(f"{path} has AWQ weights and TinyChat's {spare[0].name}. Move one of them elsewhere.")
        config = read_awq_config(path)
        checkpoint = _READERS[layout_at(path) or "vila"](path, self.name)
        layers = find_layers(checkpoint.weights.entries)
        check_awq_config(config, layers)
        return replace(checkpoint, quantization=quantization("AWQ", layers, config=config))

    def quantization_of(self, entries: Mapping[str, TensorEntry]) -> Quantization:
        """Return how the weights with these headers are quantized. Raises `CheckpointError` as `find_layers` does."""
        return quantization("AWQ", find_layers(entries))

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        """Write a checkpoint with quantized linears (`X.qweight`, `X.qzeros`, `X.scales`) and the config for them.

        Raises:
            CheckpointError: no linear is quantized, group sizes differ, or the layout's writer fails.
        """
        entries = checkpoint.weights.entries
        layers = find_layers(entries)
        if not layers.groupwise:
            raise CheckpointError(
                f"{checkpoint.path} is not quantized, but format 'awq' is for quantized weights. Run: vila-quant awq."
            )
        source = source_layout(checkpoint)
        layout = self.layout or source
        if layout != "vila-u":
            require_no_head(checkpoint, f"{self.name} ({layout})")
        stated = write_awq_config(layers, entries)
        checkpoint = replace(checkpoint, format=source, quantization=quantization("AWQ", layers, stated=stated))
        _WRITERS[layout](checkpoint, path, max_shard_bytes or DEFAULT_SHARD_BYTES)


def layout_at(path: Path) -> Layout | None:
    """Return the layout of the folder `path`, None if it is no model's. Raises nothing."""
    if is_vila_u(path):
        return "vila-u"
    model_type = model_type_at(path)
    if model_type in NVILA_TYPES:
        return "nvila"
    return "vila" if model_type == "vila" or model_type.startswith("llava_") else None


def source_layout(checkpoint: Checkpoint) -> Layout:
    """Return the layout of the folder that a checkpoint was read from, or that it needs."""
    if checkpoint.config.generation_head is not None:
        return "vila-u"
    return "nvila" if checkpoint.raw_config.get("model_type") in NVILA_TYPES else "vila"


def quantization(
    method: str, layers: QuantizedLayers, *, config: AwqConfig | None = None, stated: Mapping[str, object] | None = None
) -> Quantization:
    """Return how the weights of a checkpoint are quantized.

    Args:
        method: name of the method, for people.
        layers: quantized layers of the checkpoint.
        config: the checkpoint's config, to check against the network.
        stated: the `quantization_config` to write.
    """
    line = f"{method}, 4 bits, groups of {layers.group_size}{layers.description}"
    return Quantization(line, partial(_replace_modules, layers, config), stated or {}, layers.packed)


def _replace_modules(layers: QuantizedLayers, config: AwqConfig | None, network: "nn.Module") -> None:
    from vila_quant.formats.modules import replace_modules

    replace_modules(network, layers, config)
