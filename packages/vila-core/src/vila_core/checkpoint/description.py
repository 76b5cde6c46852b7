"""Description of a checkpoint from its config and headers: family, parts, memory, tokens. No weights are read.

Dimensions: P patches, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vila_core.chat import MEDIA_TOKENS
from vila_core.checkpoint import Checkpoint
from vila_core.checkpoint.sizes import DTYPE_BYTES, Estimate, PartSize, estimate
from vila_core.config import (
    DecoderConfig,
    PreprocessConfig,
    TSPVideoEncoderConfig,
    VilaConfig,
)
from vila_core.errors import VilaError

PARTS = {
    "llm": "language model",
    "vision_tower": "vision tower",
    "mm_projector": "projector",
    "generation": "generation head",
}
"""Prefix of the weights' canonical names -> name of the part."""

CONTEXTS = (2048, 8192, 32768, 131072)
"""Context lengths to estimate memory for, up to the model's own, which is added."""


@dataclass(frozen=True)
class PartDescription:
    """A part of the model: `kind` is its component, `stored_as` the dtypes of its weights on disk."""

    name: str
    kind: str
    parameters: int
    bytes: int
    stored_as: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes of the weights and the key/value cache of one sequence of `context` tokens, without activations."""

    dtype: str
    context: int
    weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache


@dataclass(frozen=True)
class TokenCounts:
    """Tokens per medium, without the encoder's start and end tokens. None if unknown."""

    per_tile: int | None
    per_image: tuple[int, int] | None
    """fewest, most"""
    per_video: int | None


@dataclass(frozen=True)
class ModelDescription:
    """Everything that `vila info` prints. `adapter` is a LoRA adapter that is merged into the model when it loads."""

    path: str
    adapter: str | None
    format: str
    family: str
    license: str | None
    quantization: dict[str, object] | None
    """`quantization_config` as found"""
    quantization_method: str | None
    """the same as one line for people"""
    parts: tuple[PartDescription, ...]
    parameters: int
    bytes: int
    dtype: str
    context: int
    chat_template: str
    media_tokens: dict[str, str]
    tokens: TokenCounts
    memory: tuple[Memory, ...]
    config: VilaConfig


def describe(checkpoint: Checkpoint) -> ModelDescription:
    """Return the description of `checkpoint`."""
    config, sizes = checkpoint.config, estimate(checkpoint)
    return ModelDescription(
        path=str(checkpoint.path),
        adapter=None if checkpoint.adapter is None else str(checkpoint.adapter),
        format=checkpoint.format,
        family=name_family(config),
        license=checkpoint.license,
        quantization=_quantization(checkpoint),
        quantization_method=None if checkpoint.quantization is None else checkpoint.quantization.method,
        parts=tuple(_part(checkpoint, prefix, size) for prefix, size in sizes.parts.items()),
        parameters=sizes.parameters,
        bytes=sizes.nbytes,
        dtype=config.dtype,
        context=config.language_model.max_length,
        chat_template=_template(checkpoint),
        media_tokens=dict(MEDIA_TOKENS),
        tokens=count_tokens(config),
        memory=tuple(_memory(sizes, config.language_model.max_length)),
        config=config,
    )


def name_family(config: VilaConfig) -> str:
    """Return the family of the model, known by its parts and not by its folder's name."""
    language, projector = config.language_model, config.projector.name
    if config.generation_head is not None:
        return "VILA-U" if config.vision_tower.name == "rq-siglip" else "VILA style with a generation head"
    if isinstance(config.video_encoder, TSPVideoEncoderConfig):
        return "NVILA-Video (temporal pooling)"
    if config.dynamic_s2 is not None and projector == "mlp_downsample_2x2_fix":
        return "NVILA (dynamic S2)"
    if config.preprocess.image_aspect_ratio == "dynamic":
        return "NVILA-Lite (dynamic tiles)" if projector == "mlp_downsample_3x3_fix" else "NVILA style (dynamic tiles)"
    if isinstance(language, DecoderConfig) and language.architecture in ("llama", "mistral"):
        return "LongVILA" if language.max_length > 16384 else "VILA-1.5 (S2)" if config.s2 is not None else "VILA-1.5"
    if projector in ("mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"):
        return "NVILA (one tile per image)"
    return "VILA style"


def _part(checkpoint: Checkpoint, prefix: str, size: PartSize) -> PartDescription:
    config = checkpoint.config
    kinds = {
        "llm": config.language_model.name,
        "vision_tower": config.vision_tower.name,
        "mm_projector": config.projector.name,
        "generation": "" if config.generation_head is None else config.generation_head.name,
    }
    if isinstance(config.language_model, DecoderConfig):
        kinds["llm"] = config.language_model.architecture
    dtypes = {entry.dtype for name, entry in checkpoint.weights.entries.items() if name.startswith(f"{prefix}.")}
    return PartDescription(
        PARTS.get(prefix, prefix), kinds.get(prefix, ""), size.parameters, size.nbytes, tuple(sorted(dtypes))
    )


def _quantization(checkpoint: Checkpoint) -> dict[str, object] | None:
    for raw in (checkpoint.raw_config, checkpoint.raw_parts.language_model):
        found = raw.get("quantization_config")
        if isinstance(found, dict):
            return cast("dict[str, object]", found)
    return None


def _template(checkpoint: Checkpoint) -> str:
    stated = checkpoint.config.chat_template
    if stated is not None and stated != "auto":
        return stated
    return "auto (the tokenizer's own)" if checkpoint.chat_template else "not stated: choose one with --conv-mode"


def _memory(sizes: Estimate, longest: int) -> Iterator[Memory]:
    for dtype in DTYPE_BYTES:
        for context in sorted({*(context for context in CONTEXTS if context < longest), longest}):
            cache = sizes.cache_bytes(dtype, context)
            if cache is not None:
                yield Memory(dtype, context, sizes.weight_bytes(dtype), cache)


def count_tokens(config: VilaConfig) -> TokenCounts:
    """Return the tokens that media take, without torch for common models, else by running the parts on shapes alone."""
    per_tile = _tokens_per_tile(config)
    if per_tile is None:
        return TokenCounts(None, None, None)
    fewest, most = _tiles_per_image(config.preprocess)
    return TokenCounts(per_tile, (fewest * per_tile, most * per_tile), _tokens_per_video(config, per_tile))


def _tokens_per_tile(config: VilaConfig) -> int | None:
    if config.tokens_per_tile is not None:
        return config.tokens_per_tile
    from vila_core.model import measure_tokens_per_tile

    try:
        return measure_tokens_per_tile(config)
    # A plugin's part may not run on the meta device, or may need a package that is not installed.
    except (VilaError, RuntimeError, NotImplementedError):
        return None


def _tiles_per_image(preprocess: PreprocessConfig) -> tuple[int, int]:
    if preprocess.image_aspect_ratio == "dynamic":
        return preprocess.min_tiles, preprocess.max_tiles + (preprocess.max_tiles > 1)
    if preprocess.image_aspect_ratio == "dynamic_s2":
        fewest = (max(preprocess.s2_scales) // min(preprocess.s2_scales)) ** 2
        return fewest, max(fewest, preprocess.max_tiles)
    return 1, 1


def _tokens_per_video(config: VilaConfig, per_tile: int) -> int | None:
    frames, encoder = config.preprocess.num_video_frames, config.video_encoder
    if isinstance(encoder, TSPVideoEncoderConfig):
        side = int(per_tile**0.5)
        return sum((frames // t) * (side // h) * (side // w) for t, h, w in encoder.pool_sizes)
    return frames * per_tile if encoder.name == "BasicVideoEncoder" else None


def count(parameters: int) -> str:
    """Return a number of parameters for people, such as "8.05 B"."""
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if parameters >= size:
            return f"{parameters / size:.2f} {unit}"
    return f"{parameters:,}"


def name_checkpoint(path: Path) -> str:
    """Return the name of the checkpoint at `path`: its hub id if it is in the hub's cache, else the folder's name.

    The cache keeps `owner/name` in `models--owner--name/snapshots/<commit>`.
    """
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return path.resolve().name
