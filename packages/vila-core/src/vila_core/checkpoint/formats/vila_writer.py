"""Write the `vila` layout: what was found in the source is kept, what the `VilaConfig` says is laid over it."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.configs.encoders import write_encoder
from vila_core.checkpoint.configs.language import read_language_config, write_language_config
from vila_core.checkpoint.configs.towers import read_pixel_config, write_pixel_config, write_tower_config
from vila_core.checkpoint.formats.chat_template_file import unwrap_template
from vila_core.checkpoint.formats.model_card import copy_license_files
from vila_core.checkpoint.json_files import MAX_JSON_BYTES, Section, read_json
from vila_core.checkpoint.new_folder import new_folder, write_json
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.checkpoint.tensors.shard_writer import ShardWriter
from vila_core.config import VilaConfig
from vila_core.errors import CheckpointError
from vila_core.input_files import Content, copy_input, read_input_text
from vila_core.tokenizer_folder import TOKENIZER_FILES

PARTS = ("llm", "vision_tower", "mm_projector")

OWN_KEY = "vila_kit"
OWN_PREPROCESS_KEYS = ("tile_all", "video_as_images")

_NOT_KEPT = ("_name_or_path", "auto_map", "resume_path", "quantization_config", OWN_KEY)
"""Config keys that are wrong in a copy: paths of another machine, pointers to code, how the weights were stored."""


def write_vila(checkpoint: Checkpoint, path: Path, max_shard_bytes: int) -> None:
    """Write `checkpoint` to the new folder `path`, tensor by tensor. A failed write leaves nothing behind.

    Raises:
        CheckpointError: the target is not empty, the disk is full, a source file cannot be read, or a tensor belongs to
            no part.
    """
    with new_folder(path, sum(entry.nbytes for entry in checkpoint.weights.entries.values())) as folder:
        fill_vila(checkpoint, folder, max_shard_bytes)


def fill_vila(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int) -> None:
    """Write `checkpoint` into `folder`, made by `new_folder`; other formats may add files to it."""
    config = checkpoint.config
    language, tower, projector = language_json(checkpoint), tower_json(checkpoint), projector_json(config)
    write_part_configs(checkpoint, folder, language, tower, projector)
    write_json(folder / "config.json", root_json(checkpoint, language, tower, projector))
    copy_tokenizer(checkpoint.tokenizer_path, folder / "llm", config.language_model.max_length)
    copy_license_files(checkpoint.path, folder)
    _write_weights(checkpoint, folder, max_shard_bytes)


def write_part_configs(
    checkpoint: Checkpoint,
    folder: Path,
    language: Mapping[str, object],
    tower: Mapping[str, object],
    projector: Mapping[str, object],
) -> None:
    """Make the folders of the parts, with their configs and the preprocessor's."""
    for part, content in zip(PARTS, (language, tower, projector), strict=True):
        (folder / part).mkdir()
        write_json(folder / part / "config.json", content)
    size = checkpoint.config.pixels.size
    write_json(folder / "vision_tower" / "preprocessor_config.json", preprocessor_json(checkpoint, size))


def _write_weights(checkpoint: Checkpoint, folder: Path, max_shard_bytes: int) -> None:
    parts: dict[str, dict[str, TensorEntry]] = {part: {} for part in PARTS}
    for name, entry in checkpoint.weights.entries.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"Tensor '{name}' belongs to none of {', '.join(PARTS)}; format 'vila' cannot represent it."
            )
        parts[part][rest] = entry
    with part_writers(folder, parts, max_shard_bytes) as writers:
        for name, chunks in checkpoint.weights.stream():
            part, _, rest = name.partition(".")
            writers[part].write(rest, chunks)


@contextmanager
def part_writers(
    folder: Path, parts: Mapping[str, Mapping[str, TensorEntry]], max_shard_bytes: int
) -> Generator[Mapping[str, ShardWriter]]:
    """Open a writer for each part that has tensors; `parts` says which, by the names that they get."""
    with ExitStack() as stack:
        yield {
            part: stack.enter_context(ShardWriter(folder / part, tensors, max_shard_bytes))
            for part, tensors in parts.items()
            if tensors
        }


def language_json(checkpoint: Checkpoint) -> dict[str, object]:
    """Return `llm/config.json`: the source's own where it still says the same, else with our values laid over it.

    How the weights are quantized is stated in it: with its config, a language model's folder is a checkpoint by itself.
    """
    config, quantization = checkpoint.config.language_model, checkpoint.quantization
    stated = (
        {"quantization_config": dict(quantization.config)} if quantization is not None and quantization.config else {}
    )
    raw = without_paths(checkpoint.raw_parts.language_model)
    if raw:
        source = Section(raw, "the source's language config")
        if read_language_config(source, config.max_length) == config:
            return raw | stated
        for key in ("rope_parameters", "layer_types"):
            raw.pop(key, None)
    return raw | write_language_config(config, checkpoint.config.dtype) | stated


def projector_json(config: VilaConfig) -> dict[str, object]:
    """Return `mm_projector/config.json`."""
    return {
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": config.projector.name,
        "model_type": "v2l_projector",
        "torch_dtype": config.dtype,
    }


def tower_json(checkpoint: Checkpoint) -> dict[str, object]:
    """Return `vision_tower/config.json`."""
    tower = checkpoint.config.vision_tower
    raw = without_paths(checkpoint.raw_parts.vision_tower)
    if not raw:
        return write_tower_config(tower, checkpoint.config.dtype)
    return raw if "vision_config" in raw else raw | {"image_size": tower.pretrained_image_size or tower.image_size}


def preprocessor_json(checkpoint: Checkpoint, size: int) -> dict[str, object]:
    """Return `preprocessor_config.json` for images of `size` pixels."""
    config = checkpoint.config
    raw = dict(checkpoint.raw_parts.preprocessor)
    # Under S2 the scales decide, and whatever size the source stated is as good.
    stated = None if config.s2 is None and config.dynamic_s2 is None else config.pixels.size
    if (
        raw
        and read_pixel_config(Section(raw, "the source's preprocessor config"), config.vision_tower, stated)
        == config.pixels
    ):
        return raw
    return raw | write_pixel_config(config.pixels, config.vision_tower, size)


def root_json(
    checkpoint: Checkpoint, language: Mapping[str, object], tower: Mapping[str, object], projector: Mapping[str, object]
) -> dict[str, object]:
    """Return the root `config.json`, with every key that the reference reads."""
    config = checkpoint.config
    raw = without_paths(checkpoint.raw_config) if checkpoint.format.startswith("vila") else {}
    return raw | {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "resume_path": None,
        "model_dtype": f"torch.{config.dtype}",
        "hidden_size": config.language_model.hidden_size,
        "mm_hidden_size": config.projector.in_size,
        "llm_cfg": dict(language),
        "vision_tower_cfg": dict(tower),
        "mm_projector_cfg": dict(projector),
        "mm_vision_select_layer": config.vision_tower.select_layer,
        "mm_vision_select_feature": config.vision_tower.select_feature,
        "vision_resolution": config.vision_tower.image_size if config.vision_tower.pretrained_image_size else -1,
        "interpolate_mode": "linear",
        "image_encoder": write_encoder(config.image_encoder),
        "video_encoder": write_encoder(config.video_encoder),
        **_preprocess_json(config, raw),
        **_s2_json(config),
        "num_time_tokens": config.time_tokens.count if config.time_tokens else 0,
        "time_token_format": config.time_tokens.format
        if config.time_tokens
        else raw.get("time_token_format", "<t{t}>"),
        **({"version": config.chat_template} if config.chat_template else {}),
        **_own_json(config),
    }


def _preprocess_json(config: VilaConfig, raw: Mapping[str, object]) -> dict[str, object]:
    fields: dict[str, object] = config.preprocess.model_dump(mode="json", exclude={"s2_scales", *OWN_PREPROCESS_KEYS})
    if config.preprocess.image_aspect_ratio == "other":
        fields["image_aspect_ratio"] = raw.get("image_aspect_ratio")
    return fields


def _own_json(config: VilaConfig) -> dict[str, object]:
    """What the reference has no key for, in one object of its own, and only where it is not the default."""
    stated = config.preprocess.model_dump(mode="json", include=set(OWN_PREPROCESS_KEYS))
    own: dict[str, object] = {key: value for key, value in stated.items() if value}
    if config.chat_template not in (None, "auto"):
        own["chat_template"] = config.chat_template
    return {OWN_KEY: own} if own else {}


def _s2_json(config: VilaConfig) -> dict[str, object]:
    s2 = config.s2 or config.dynamic_s2
    if s2 is None:
        return {"s2": False, "dynamic_s2": False}
    return {
        "s2": config.s2 is not None,
        "dynamic_s2": config.dynamic_s2 is not None,
        "s2_scales": ",".join(map(str, s2.scales)),
        "s2_max_split_size": s2.max_split_size,
        "s2_resize_output_to_scale_idx": s2.resize_output_to_scale_idx,
    }


def without_paths(raw: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of a raw config without the keys that would be wrong in another folder."""
    return {key: value for key, value in raw.items() if key not in _NOT_KEPT}


def copy_tokenizer(source: Path, target: Path, max_length: int) -> None:
    """Copy a tokenizer's files, with `max_length` as its context. A template extended for SGLang is restored."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (source / name).exists():
            copy_input(source / name, target / name, max_bytes=MAX_JSON_BYTES, content=Content.PLAIN)
    jinja = target / "chat_template.jinja"
    if jinja.exists():
        template = read_input_text(jinja, max_bytes=MAX_JSON_BYTES)
        jinja.write_text(unwrap_template(template), encoding="utf-8")
    config_file = target / "tokenizer_config.json"
    content = read_json(config_file) if config_file.exists() else {}
    changed = content | {"model_max_length": max_length}
    template = content.get("chat_template")
    if isinstance(template, str):
        changed["chat_template"] = unwrap_template(template)
    if changed != content:
        write_json(config_file, changed)
