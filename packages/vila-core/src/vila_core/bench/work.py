"""The bytes that a model must read and the operations that it must compute, from the headers of its weights.

Dimensions: P patches of a tile.
"""

from dataclasses import dataclass

from vila_core.bench.limits import Limits
from vila_core.checkpoint import Checkpoint, estimate
from vila_core.checkpoint.sizes import DTYPE_BYTES
from vila_core.config import DecoderConfig


@dataclass(frozen=True)
class Work:
    """Sizes of a model in one dtype.

    Attributes:
        weight_bytes: of the language model, as a step reads them: of an embedding that is not the head, nothing.
        cache_bytes: of one token's keys and values.
        weights: of the language model, without embedding and head: each is used once per token.
        head_weights: used once per answer token.
        tower_weights, projector_weights: each is used once per patch, and once per token of an image.
        patches: P.
    """

    weight_bytes: int
    cache_bytes: int
    weights: int
    head_weights: int
    tower_weights: int
    projector_weights: int
    patches: int

    def step_seconds(self, context: int, limits: Limits) -> float:
        """Return how long reading takes for one token after `context` others."""
        return (self.weight_bytes + context * self.cache_bytes) / limits.bytes_per_second

    def prefill_seconds(self, tokens: int, limits: Limits) -> float:
        """Return how long the products with weights take for a prompt, or reading the weights if that takes longer."""
        computing = 2 * (tokens * self.weights + self.head_weights) / limits.operations_per_second
        return max(computing, self.step_seconds(0, limits))

    def image_seconds(self, tiles: int, image_tokens: int, prompt_tokens: int, limits: Limits) -> float:
        """Return the same for the first token of a prompt with an image, tower and projector included."""
        media = tiles * self.patches * self.tower_weights + image_tokens * self.projector_weights
        return 2 * media / limits.operations_per_second + self.prefill_seconds(prompt_tokens, limits)


def work_of(checkpoint: Checkpoint, dtype: str) -> Work:
    """Return the sizes of `checkpoint` when it is loaded in `dtype`, such as "bfloat16"."""
    sizes, entries = estimate(checkpoint), checkpoint.weights.entries
    config = checkpoint.config.language_model
    tower = checkpoint.config.vision_tower
    one = sizes.parts["llm"]
    embedding = sum(entry.numel for name, entry in entries.items() if name.endswith("embed_tokens.weight"))
    is_tied = isinstance(config, DecoderConfig) and config.tie_word_embeddings
    weight_bytes = (one.parameters - one.packed) * DTYPE_BYTES[dtype] + one.packed_bytes
    return Work(
        weight_bytes=weight_bytes - (0 if is_tied else embedding * DTYPE_BYTES[dtype]),
        cache_bytes=sizes.cache_bytes(dtype, 1) or 0,
        weights=one.parameters - embedding * (1 if is_tied else 2),
        head_weights=embedding,
        tower_weights=sizes.parts["vision_tower"].parameters if "vision_tower" in sizes.parts else 0,
        projector_weights=sizes.parts["mm_projector"].parameters if "mm_projector" in sizes.parts else 0,
        patches=(checkpoint.config.pixels.size // tower.patch_size) ** 2,
    )
