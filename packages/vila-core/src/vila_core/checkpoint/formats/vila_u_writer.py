"""Write VILA-U's layout: what was found in the source is kept, what the `VilaConfig` says is laid over it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.configs.vila_u import HEAD_HALF, SIDECAR, TOWER_HALF, write_rq_tower, write_sidecar
from vila_core.checkpoint.formats.model_card import copy_license_files
from vila_core.checkpoint.formats.vila_writer import (
    OWN_KEY,
    PARTS,
    copy_tokenizer,
    language_json,
    part_writers,
    projector_json,
    without_paths,
    write_part_configs,
)
from vila_core.checkpoint.json_files import read_json
from vila_core.checkpoint.new_folder import new_folder, write_json
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.config import DepthTransformerConfig, RQSiglipConfig, VilaConfig
from vila_core.errors import CheckpointError

_HALVES = {"vision_tower": ("vision_tower", f"{TOWER_HALF}."), "generation": ("vision_tower", f"{HEAD_HALF}.")}
"""First part of a canonical name -> folder, and beginning of the stored name."""
_VOCABULARY = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


def write_vila_u(checkpoint: Checkpoint, path: Path, max_shard_bytes: int) -> None:
    """Write `checkpoint` to the new folder `path`, tensor by tensor. A failed write leaves nothing behind.

    Raises:
        CheckpointError: the model has no codes or no depth transformer, the target is not empty, the disk is full, or a
            source file cannot be read.
    """
    tower, head = require_vila_u(checkpoint.config)
    with new_folder(path, sum(entry.nbytes for entry in checkpoint.weights.entries.values())) as folder:
        rows = _vocabulary_rows(checkpoint)
        _write_configs(checkpoint, folder, tower, head, rows)
        copy_tokenizer(checkpoint.tokenizer_path, folder / "llm", checkpoint.config.language_model.max_length)
        _write_generation_config(folder / "llm" / "generation_config.json")
        copy_license_files(checkpoint.path, folder)
        _write_weights(checkpoint, folder, max_shard_bytes, rows)


def require_vila_u(config: VilaConfig) -> tuple[RQSiglipConfig, DepthTransformerConfig]:
    """Return the tower and the head of a model in this format. Raises `CheckpointError` for other models."""
    tower, head = config.vision_tower, config.generation_head
    if not isinstance(tower, RQSiglipConfig) or not isinstance(head, DepthTransformerConfig):
        found = f"a '{tower.name}' tower and {'no generation head' if head is None else repr(head.name)}"
        raise CheckpointError(
            f"Format 'vila-u' holds models with an rq-siglip tower and a depth transformer; this one has {found}. "
            "Write it as 'vila' or 'nvila'."
        )
    return tower, head


def _write_configs(
    checkpoint: Checkpoint, folder: Path, tower: RQSiglipConfig, head: DepthTransformerConfig, rows: int
) -> None:
    config = checkpoint.config
    language = language_json(checkpoint) | {"vocab_size": rows}
    raw_tower = without_paths(checkpoint.raw_parts.vision_tower) if checkpoint.format == "vila-u" else {}
    tower_json = write_rq_tower(tower, head, raw_tower, config.dtype)
    projector = projector_json(config)
    write_part_configs(checkpoint, folder, language, tower_json, projector)
    half = tower_json[TOWER_HALF]
    if isinstance(half, dict) and half.get("pretrained_model") == SIDECAR:
        (folder / SIDECAR).mkdir()
        write_json(folder / SIDECAR / "config.json", write_sidecar(tower))
    raw = without_paths(checkpoint.raw_config) if checkpoint.format == "vila-u" else {}
    own: dict[str, object] = {"knows_empty_prompt": head.knows_empty_prompt}
    if config.chat_template not in (None, "vicuna_v1"):
        own["chat_template"] = config.chat_template
    write_json(
        folder / "config.json",
        raw
        | {
            "architectures": ["VILAULlamaModel"],
            "model_type": "vila_u_llama",
            "resume_path": None,
            "model_dtype": f"torch.{config.dtype}",
            "hidden_size": config.language_model.hidden_size,
            "mm_hidden_size": config.projector.in_size,
            "llm_cfg": language,
            "vision_tower_cfg": tower_json,
            "mm_projector_cfg": projector,
            "mm_vision_select_layer": tower.select_layer,
            "image_aspect_ratio": "pad" if config.preprocess.image_aspect_ratio == "pad" else "resize",
            "num_video_frames": config.preprocess.num_video_frames,
            "mm_use_im_start_end": True,
            "mm_use_vi_start_end": head.video_start_token is not None,
            "mm_use_im_patch_token": False,
            OWN_KEY: own,
        },
    )


def _write_generation_config(path: Path) -> None:
    """Turn on sampling, without which the reference cannot draw."""
    values = read_json(path) if path.exists() else {}
    if values.get("do_sample") is not True:
        write_json(path, values | {"do_sample": True})


def _vocabulary_rows(checkpoint: Checkpoint) -> int:
    """Return how many rows the embedding has in the checkpoint.

    Loading appends rows for tokens of this project. The reference counts its special tokens from the end, so that
    nothing may follow them.
    """
    stored = checkpoint.weights.entries.get(_VOCABULARY[0])
    original = checkpoint.raw_parts.language_model.get("vocab_size")
    rows = checkpoint.config.language_model.vocab_size if stored is None else stored.shape[0]
    if isinstance(original, int) and checkpoint.format == "vila-u" and 0 < original < rows:
        return original
    return rows


def _write_weights(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int, rows: int) -> None:
    parts: dict[str, dict[str, TensorEntry]] = {part: {} for part in PARTS}
    places: dict[str, tuple[str, str]] = {}
    for name, entry in checkpoint.weights.entries.items():
        first, _, rest = name.partition(".")
        part, prefix = _HALVES.get(first, (first, ""))
        if part not in parts:
            raise CheckpointError(f"Tensor '{name}' belongs to no part of the model; format 'vila-u' cannot hold it.")
        places[name] = (part, f"{prefix}{rest}")
        is_longer = name in _VOCABULARY and entry.shape[0] > rows
        parts[part][f"{prefix}{rest}"] = replace(entry, shape=(rows, *entry.shape[1:])) if is_longer else entry
    with part_writers(folder, parts, max_shard_bytes) as writers:
        for name, chunks in checkpoint.weights.stream():
            part, stored = places[name]
            entry, kept = checkpoint.weights.entries[name], parts[part][stored]
            size = entry.nbytes * math.prod(kept.shape) // max(math.prod(entry.shape), 1)
            writers[part].write(stored, _first(chunks, size))


def _first(chunks: Iterator[bytes | memoryview], size: int) -> Iterator[bytes | memoryview]:
    """Yield the first `size` bytes of `chunks`, and read the rest."""
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        if size > 0:
            yield view[:size]
        size -= len(view)
