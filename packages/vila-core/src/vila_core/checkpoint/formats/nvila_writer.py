"""Write the `nvila` layout, with the names and config keys that SGLang reads."""

from pathlib import Path
from typing import cast

from vila_core.checkpoint.checkpoint import Checkpoint
from vila_core.checkpoint.configs.config_json import dump_config
from vila_core.checkpoint.formats.chat_template_file import wrap_template
from vila_core.checkpoint.formats.model_card import copy_license_files
from vila_core.checkpoint.formats.vila_writer import PARTS, copy_tokenizer, language_json, preprocessor_json, tower_json
from vila_core.checkpoint.json_files import read_json
from vila_core.checkpoint.new_folder import new_folder, write_json
from vila_core.checkpoint.tensors.shard_writer import ShardWriter
from vila_core.config import BasicImageEncoderConfig, BasicVideoEncoderConfig, DecoderConfig, SiglipConfig, VilaConfig
from vila_core.errors import CheckpointError

SIDECAR = "vila_config.json"

MEDIA_TOKENS = {"image_token": "<image>", "video_token": "<vila/video>"}

# Released folders with the config and processor classes, for readers that run remote code. vila-core never does.
_NVILA = (
    "nvila",
    "NVILAForConditionalGeneration",
    "NVILAConfig",
    "NVILAProcessor",
    "Efficient-Large-Model/NVILA-8B-hf",
)
_NVILA_LITE = (
    "nvila_lite",
    "NVILALiteForConditionalGeneration",
    "NVILALiteConfig",
    "NVILALiteProcessor",
    "Efficient-Large-Model/NVILA-Lite-2B-hf",
)


def write_nvila(checkpoint: Checkpoint, path: Path, max_shard_bytes: int) -> None:
    """Write `checkpoint` to the new folder `path`, tensor by tensor. A failed write leaves nothing behind.

    Raises:
        CheckpointError: the format does not support the model's design, the tokenizer lacks the media tokens,
            the target is not empty, or the disk is full.
    """
    config = checkpoint.config
    model_type, architecture, config_class, processor_class, code = require_design(config)
    token_ids = {token: _token_id(checkpoint.tokenizer_path, token) for token in MEDIA_TOKENS.values()}
    entries = checkpoint.weights.entries
    unknown = [name for name in entries if name.partition(".")[0] not in PARTS]
    if unknown:
        raise CheckpointError(
            f"Tensor '{unknown[0]}' belongs to none of {', '.join(PARTS)}; format 'nvila' cannot represent it."
        )
    with new_folder(path, sum(entry.nbytes for entry in entries.values())) as folder:
        language = language_json(checkpoint)
        # Readers of a nested config look for it at the root.
        quantization = {key: language[key] for key in ("quantization_config",) if key in language}
        root: dict[str, object] = quantization | {
            "architectures": [architecture],
            "auto_map": {"AutoConfig": f"{code}--configuration_{model_type}.{config_class}"},
            "image_token_id": token_ids["<image>"],
            "model_type": model_type,
            "text_config": language,
            "torch_dtype": config.dtype,
            "video_token_id": token_ids["<vila/video>"],
            "vision_config": tower_json(checkpoint),
        }
        write_json(folder / "config.json", root)
        write_json(folder / "preprocessor_config.json", preprocessor_json(checkpoint, config.pixels.size))
        processor: dict[str, object] = {
            "auto_map": {"AutoProcessor": f"{code}--processing_{model_type}.{processor_class}"},
            "processor_class": processor_class,
        }
        write_json(folder / "processor_config.json", processor)
        write_json(folder / SIDECAR, dump_config(config))
        _write_tokenizer(checkpoint, folder, processor_class)
        copy_license_files(checkpoint.path, folder)
        with ShardWriter(folder, entries, max_shard_bytes) as writer:
            for name, chunks in checkpoint.weights.stream():
                writer.write(name, chunks)


def require_design(config: VilaConfig) -> tuple[str, str, str, str, str]:
    """Return the model type of `config`'s design and the names of its classes and repository.

    Raises:
        CheckpointError: the design is neither model type's; lists every difference.
    """
    is_lite = config.dynamic_s2 is None
    tower, language_model = config.vision_tower, config.language_model
    wanted = "mlp_downsample_3x3_fix" if is_lite else "mlp_downsample_2x2_fix"
    checks = {
        f"the vision tower is '{tower.name}', not 'siglip'": isinstance(tower, SiglipConfig),
        "the tower's positions are resized as they load": tower.pretrained_image_size is None,
        f"features come from layer {tower.select_layer} ({tower.select_feature}), not -2 (cls_patch)": (
            tower.select_layer == -2 and tower.select_feature == "cls_patch"
        ),
        "static S2 is on": config.s2 is None,
        f"the projector is '{config.projector.name}', not '{wanted}'": config.projector.name == wanted,
        f"the language model is '{_architecture(config)}', not 'qwen2'": isinstance(language_model, DecoderConfig)
        and language_model.architecture == "qwen2",
        "a media encoder is not the basic one": type(config.image_encoder) is BasicImageEncoderConfig
        and type(config.video_encoder) is BasicVideoEncoderConfig,
    }
    problems = [problem for problem, holds in checks.items() if not holds]
    if problems:
        name = "nvila_lite" if is_lite else "nvila"
        raise CheckpointError(
            f"Format 'nvila' ({name}) cannot represent this model: {'; '.join(problems)}. Format 'vila' can."
        )
    return _NVILA_LITE if is_lite else _NVILA


def _architecture(config: VilaConfig) -> str:
    language_model = config.language_model
    return language_model.architecture if isinstance(language_model, DecoderConfig) else language_model.name


def _token_id(tokenizer: Path, token: str) -> int:
    """Return the id of an added token, from the tokenizer's files."""
    if (tokenizer / "tokenizer.json").exists():
        added = read_json(tokenizer / "tokenizer.json", is_vocabulary=True).get("added_tokens")
        for item in cast(list[object], added) if isinstance(added, list) else []:
            if isinstance(item, dict) and cast(dict[str, object], item).get("content") == token:
                found = cast(dict[str, object], item).get("id")
                if isinstance(found, int):
                    return found
    if (tokenizer / "added_tokens.json").exists():
        found = read_json(tokenizer / "added_tokens.json").get(token)
        if isinstance(found, int):
            return found
    raise CheckpointError(
        f"The tokenizer in {tokenizer} has no token '{token}', which format 'nvila' needs. "
        "Format 'vila' can represent this model."
    )


def _write_tokenizer(checkpoint: Checkpoint, folder: Path, processor_class: str) -> None:
    copy_tokenizer(checkpoint.tokenizer_path, folder, checkpoint.config.language_model.max_length)
    config_file = folder / "tokenizer_config.json"
    content = read_json(config_file)
    # The processor asks the tokenizer for its image and video tokens by these names.
    content |= {"extra_special_tokens": MEDIA_TOKENS, **MEDIA_TOKENS, "processor_class": processor_class}
    if checkpoint.chat_template is not None:
        template = wrap_template(checkpoint.chat_template)
        content["chat_template"] = template
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(config_file, content)
