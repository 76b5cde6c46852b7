"""The size of a model: parameters and bytes by part, memory by dtype and context. Reads headers only, without torch."""

import math
from dataclasses import dataclass

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.json_files import Section
from vila_core.config import DecoderConfig, LanguageModelConfig, TransformersConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PartSize:
    """One part of the model: its number of weights, and their stored bytes.

    Of these, `packed` weights are quantized and take `packed_bytes`, including scales and zeros.
    """

    parameters: int
    nbytes: int
    packed: int = 0
    packed_bytes: int = 0


@dataclass(frozen=True)
class Estimate:
    """Sizes of a checkpoint. `cache_values_per_token` counts the numbers per token in the KV cache, None if unknown."""

    parts: dict[str, PartSize]
    cache_values_per_token: int | None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum(part.nbytes for part in self.parts.values())

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights loaded in `dtype` ("float32", "bfloat16", "float16"); quantized weights keep theirs."""
        parts = self.parts.values()
        return sum((part.parameters - part.packed) * DTYPE_BYTES[dtype] + part.packed_bytes for part in parts)

    def cache_bytes(self, dtype: str, context: int, batch_size: int = 1) -> int | None:
        """Bytes of the KV cache for `context` tokens, None if unknown."""
        if self.cache_values_per_token is None:
            return None
        return self.cache_values_per_token * context * batch_size * DTYPE_BYTES[dtype]


def estimate(checkpoint: Checkpoint) -> Estimate:
    """Return the sizes of `checkpoint`, by part (`llm`, `vision_tower`, `mm_projector`)."""
    packed = {} if checkpoint.quantization is None else checkpoint.quantization.packed
    parts: dict[str, PartSize] = {}
    for name, entry in checkpoint.weights.entries.items():
        part = name.partition(".")[0]
        old = parts.get(part, PartSize(0, 0))
        count = packed.get(name, math.prod(entry.shape))
        parts[part] = PartSize(
            parameters=old.parameters + count,
            nbytes=old.nbytes + entry.nbytes,
            packed=old.packed + (count if name in packed else 0),
            packed_bytes=old.packed_bytes + (entry.nbytes if name in packed else 0),
        )
    return Estimate(parts, _cache_values_per_token(checkpoint.config.language_model))


def _cache_values_per_token(config: LanguageModelConfig) -> int | None:
    if isinstance(config, DecoderConfig):
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    if isinstance(config, TransformersConfig):
        raw = Section(config.hf_config, "the language model's config")
        if "num_hidden_layers" in raw and "num_attention_heads" in raw:
            heads = raw.integer("num_attention_heads")
            width = raw.integer("head_dim", max(config.hidden_size // heads, 1))
            return 2 * raw.integer("num_hidden_layers") * raw.integer("num_key_value_heads", heads) * width
    return None
