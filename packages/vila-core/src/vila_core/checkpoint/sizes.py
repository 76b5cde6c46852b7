"""How large a model is: parameters and bytes by part, memory at each dtype and context. From headers alone, without torch."""

import math
from dataclasses import dataclass

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.json_files import Section
from vila_core.config import DecoderConfig, LanguageModelConfig, TransformersConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PartSize:
    """One part of the model: the number of its weights, and their bytes as stored."""

    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Estimate:
    """Sizes of a checkpoint. `cache_values_per_token` is how many numbers the KV cache keeps of one token, None where unknown."""

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
        """Bytes of the weights in `dtype` ("float32", "bfloat16", "float16")."""
        return self.parameters * DTYPE_BYTES[dtype]

    def cache_bytes(self, dtype: str, context: int, batch_size: int = 1) -> int | None:
        """Bytes of the KV cache for `context` tokens, None where the language model does not say."""
        if self.cache_values_per_token is None:
            return None
        return self.cache_values_per_token * context * batch_size * DTYPE_BYTES[dtype]

    def memory_bytes(self, dtype: str, context: int, batch_size: int = 1) -> int | None:
        """Bytes of weights and KV cache together; activations come on top (some hundred megabytes for the large models)."""
        cache = self.cache_bytes(dtype, context, batch_size)
        return None if cache is None else self.weight_bytes(dtype) + cache


def estimate(checkpoint: Checkpoint) -> Estimate:
    """Return the sizes of `checkpoint`, by part (`llm`, `vision_tower`, `mm_projector`)."""
    parts: dict[str, PartSize] = {}
    for name, entry in checkpoint.weights.entries.items():
        part = name.partition(".")[0]
        old = parts.get(part, PartSize(0, 0))
        parts[part] = PartSize(old.parameters + math.prod(entry.shape), old.nbytes + entry.nbytes)
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
