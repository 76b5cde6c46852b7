"""Checkpoints of random weights that exist only while they load: real shapes, nothing to download.

N outputs, K inputs, g group size
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vila_core.bench.shapes import TITLES, model_shape
from vila_core.checkpoint import Checkpoint, Quantization, TensorEntry, open_checkpoint
from vila_core.checkpoint.embedded import EMBEDDED_MODEL
from vila_core.checkpoint.tensors.copying import tensor_bytes
from vila_core.checkpoint.tensors.dtypes import DTYPES
from vila_core.config import VilaConfig
from vila_core.errors import ConfigError, MissingDependencyError
from vila_core.model import VilaModel
from vila_core.plugins.lazy_formats import QuantizedFormat
from vila_core.plugins.loader import load_plugins
from vila_core.tokenizer import Tokenizer

WeightKind = Literal["w4", "bf16"]
WEIGHT_KINDS: tuple[WeightKind, ...] = ("w4", "bf16")
GROUP_SIZE = 128
STD = 0.02
POOL = 1 << 20
"""Random numbers that are drawn; tensors repeat them."""

_QUANTIZED = re.compile(r"(llm\.model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj)\.weight")
_ZEROS = -0x77777778
"""Eight zero points of 8."""


@dataclass(frozen=True)
class RandomWeights:
    """`Weights` that are drawn as they are read: matrices with a deviation of 0.02, norms of one."""

    entries: Mapping[str, TensorEntry]

    def shards(self, device: torch.device | str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor on `device`)."""
        generator = torch.Generator(device).manual_seed(0)
        numbers = torch.empty(POOL, device=device).normal_(0, STD, generator=generator)
        words = torch.empty(POOL, device=device, dtype=torch.int32).random_(generator=generator)
        for name, entry in self.entries.items():
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device=device)
            if name.endswith(".qzeros"):
                tensor.fill_(_ZEROS)
            elif name.endswith(".scales"):
                tensor.fill_(STD / 4.6)  # the deviation of the numbers 0 … 15 is 4.6
            elif tensor.ndim == 1 and name.endswith(".weight"):
                tensor.fill_(1)
            else:
                _repeat(numbers if tensor.is_floating_point() else words, tensor)
            yield name, tensor

    def stream(self) -> Iterator[tuple[str, Iterator[bytes | memoryview]]]:
        """Yield (name, its bytes)."""
        for name, tensor in self.shards():
            yield name, iter([tensor_bytes(tensor)])


def _repeat(pool: torch.Tensor, tensor: torch.Tensor) -> None:
    flat = tensor.view(-1)
    full = len(flat) // len(pool) * len(pool)
    flat[:full].view(-1, len(pool)).copy_(pool)
    flat[full:].copy_(pool[: len(flat) - full])


def random_checkpoint(name: str, weights: WeightKind) -> Checkpoint:
    """Return a checkpoint with the shapes called `name` and the embedded model's tokenizer.

    Raises:
        ConfigError: unknown shapes.
        MissingDependencyError: 4-bit weights need vila-quant.
    """
    config = model_shape(name, "float16" if weights == "w4" else "bfloat16")
    return checkpoint_of(config, TITLES[name], weights)


def checkpoint_of(config: VilaConfig, title: str, weights: WeightKind) -> Checkpoint:
    """Return a checkpoint of random weights with this config. Raises `MissingDependencyError` as above."""
    tokenizer_path = open_checkpoint(EMBEDDED_MODEL).tokenizer_path
    with torch.device("meta"):
        network = VilaModel(config, Tokenizer.from_folder(tokenizer_path))
    dtype = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[config.dtype]
    entries: dict[str, TensorEntry] = {}
    for name, tensor in network.state_dict().items():
        shapes = {name: (dtype, tuple(tensor.shape))}
        found = _QUANTIZED.fullmatch(name)
        if weights == "w4" and found is not None:
            shapes = _four_bits(found[1], *tensor.shape)
        for key, (kind, shape) in shapes.items():
            entries[key] = TensorEntry(Path("<random>"), key, kind, shape, None)
    return Checkpoint(
        path=Path(f"{title}, random weights"),
        format="vila",
        config=config,
        weights=RandomWeights(entries),
        tokenizer_path=tokenizer_path,
        raw_config={},
        quantization=_quantization(entries) if weights == "w4" else None,
    )


def _four_bits(module: str, outputs: int, inputs: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of AutoAWQ's tensors for a linear."""
    size = math.gcd(GROUP_SIZE, inputs)
    return {
        f"{module}.qweight": ("I32", (inputs, outputs // 8)),
        f"{module}.qzeros": ("I32", (inputs // size, outputs // 8)),
        f"{module}.scales": ("F16", (inputs // size, outputs)),
    }


def _quantization(entries: Mapping[str, TensorEntry]) -> Quantization:
    formats = load_plugins().checkpoint_formats
    if "awq" not in formats:
        raise MissingDependencyError("vila-quant", "4-bit weights (--weights bf16 does without)", "vila-quant")
    format = formats.get("awq")
    if not isinstance(format, QuantizedFormat):
        raise ConfigError(f"The checkpoint format 'awq' of {formats.owner('awq')} does not describe quantized weights.")
    return format.quantization_of(entries)
