"""RADIO's config (nvidia/RADIO on the hub). Its JSON states little, so the sizes come from the weights' shapes."""

import math

from vila_core.checkpoint.json_files import Section
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.errors import CheckpointError

_PATCHES = "radio_model.model.patch_generator."
_HEADS = {1280: 16, 1152: 16}
"""Attention heads by width, if a head is not 64 wide: ViT-H (80) and SO400M (72)."""


def is_radio(raw: Section) -> bool:
    """Return whether the config is RADIO's, which has no model type and is known by its class name."""
    architectures = raw.values.get("architectures")
    named = isinstance(architectures, list) and any(str(name).startswith("RADIO") for name in architectures)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return named or raw.values.get("model_type") == "radio"


def radio_config(raw: Section, weights: dict[str, TensorEntry]) -> dict[str, object]:
    """Return the fields of `RadioConfig`.

    Heads are 64 wide (80 in the 1280-wide ViT-H), as in timm. Class tokens and registers share one tensor: registers
    fill it up to a multiple of `args.register_multiple`.

    Raises:
        CheckpointError: a tensor that RADIO needs is not there.
    """
    shapes = {name: entry.shape for name, entry in weights.items()}
    if f"{_PATCHES}pos_embed" not in shapes or "radio_model.model.blocks.0.mlp.fc1.weight" not in shapes:
        return _stated(raw)
    _, positions, width = shapes[f"{_PATCHES}pos_embed"]
    patch_size = raw.integer("patch_size", 16)
    layers = len({name.split(".")[3] for name in shapes if name.startswith("radio_model.model.blocks.")})
    tokens = shapes.get(f"{_PATCHES}cls_token.token", (1, width))[0]
    summaries = _num_class_tokens(raw, tokens)
    return {
        "image_size": raw.integer("image_size", _preferred_size(raw)),
        "patch_size": patch_size,
        "hidden_size": width,
        "intermediate_size": shapes["radio_model.model.blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS.get(width, width // 64),
        "max_image_size": math.isqrt(positions) * patch_size,
        "num_summary_tokens": summaries,
        "num_registers": tokens - summaries,
        "final_norm": "radio_model.model.norm.weight" in shapes,
        "normalize_features": "radio_model.feature_normalizer.mean" in shapes,
    }


def _stated(raw: Section) -> dict[str, object]:
    """Return whether the config states all sizes, as only vila-core writes it."""
    keys = (
        "image_size",
        "patch_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_image_size",
    )
    fields: dict[str, object] = {key: raw.integer(key) for key in (*keys, "num_summary_tokens")}
    fields["num_registers"] = raw.integer("num_registers", 0, minimum=0)
    return fields


def _preferred_size(raw: Section) -> int | None:
    return int(raw.numbers("preferred_resolution", 2)[0]) if "preferred_resolution" in raw else None


def _num_class_tokens(raw: Section, tokens: int) -> int:
    """Return the number of class tokens: one per distinct teacher name, else one."""
    args = raw.section("args") if "args" in raw else Section({}, raw.source)
    if not args.boolean("cls_token_per_teacher", False):
        return 1 if "args" in raw else raw.integer("num_summary_tokens", tokens)
    teachers = args.values.get("teachers")
    if not isinstance(teachers, list):
        raise CheckpointError(f"{args.source} has no list of 'teachers', which 'cls_token_per_teacher' needs.")
    names = {str(teacher.get("name")) for teacher in teachers if isinstance(teacher, dict)}  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportUnknownArgumentType]
    return min(len(names), tokens)
