"""Folders that other engines serve: SGLang and the PyTorch backend of TensorRT-LLM.

Both read a format that we also read, but with demands of their own, which are checked before anything is written.
Sources: SGLang's sglang/srt/models/{nvila,nvila_lite}.py, and TensorRT-LLM's
tensorrt_llm/_torch/models/{modeling_vila,modeling_multimodal_encoder}.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from vila_core.checkpoint.checkpoint import Checkpoint, require_unquantized
from vila_core.checkpoint.formats.nvila_writer import require_design, write_nvila
from vila_core.checkpoint.formats.vila_writer import PARTS, fill_vila
from vila_core.checkpoint.json_files import read_json
from vila_core.checkpoint.lora import merge_adapter, open_checkpoint
from vila_core.checkpoint.new_folder import new_folder, write_json
from vila_core.checkpoint.tensors.shard_writer import DEFAULT_SHARD_BYTES
from vila_core.config import BasicImageEncoderConfig, BasicVideoEncoderConfig, DecoderConfig, VilaConfig
from vila_core.errors import CheckpointError, shown

SERVE: Mapping[str, str] = {
    "sglang": "python -m sglang.launch_server --model-path {folder} --trust-remote-code",
    "tensorrt-llm": "trtllm-serve {folder} --backend pytorch --trust_remote_code",
}
"""The command by which each engine serves a folder."""

TENSORRT_LLM_TOWERS = ("siglip", "clip")
TENSORRT_LLM_PROJECTORS = (
    "identity",
    "linear",
    "mlp_downsample",
    "mlp_downsample_2x2_fix",
    "mlp_downsample_3x3_fix",
    "mlp_downsample_3x3_s2",
    "mlp_downsample_3x3_s2_new",
)
TENSORRT_LLM_TEMPLATES: Mapping[str, str] = {
    "vila1.5-3b": "vicuna_v1",
    "vila1.5-8b": "llama_3",
    "vila1.5-13b": "vicuna_v1",
    "vila1.5-40b": "hermes-2",
    "llama-3": "llama_3",
    "llama3": "llama_3",
}
"""It chooses the chat template by what the folder's path contains (`CONVERSATION_MODE_MAPPING`), in this order."""


def export(
    engine: str,
    source: str | Path | Checkpoint,
    out: str | Path,
    *,
    lora: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    max_shard_bytes: int | None = None,
) -> Path:
    """Write `source` to the new folder `out` as `engine` reads it, and return the folder.

    Tensors are copied as bytes. A failed export leaves nothing behind.

    Args:
        engine: "sglang" or "tensorrt-llm".
        source: a folder, a hub id, or an opened checkpoint.
        out: a folder that does not exist yet, or is empty.
        lora: folder or hub id of a LoRA adapter to merge into the weights.
        revision: branch, tag or commit; only for a hub id.
        offline: use the hub's cache only.
        max_shard_bytes: largest safetensors file; None is 5 GB.

    Raises:
        CheckpointError: the engine is unknown or would not compute what this model computes (every reason is listed),
            the weights are quantized, `out` is not empty, or the disk is full.
    """
    require_engine(engine)
    checkpoint = (
        source if isinstance(source, Checkpoint) else open_checkpoint(source, revision=revision, offline=offline)
    )
    require_unquantized(checkpoint)
    if lora is not None:
        checkpoint = merge_adapter(checkpoint, lora, offline=offline)
    path = Path(out).expanduser()
    _WRITERS[engine](checkpoint, path, max_shard_bytes or DEFAULT_SHARD_BYTES)
    return path


def require_engine(engine: str) -> None:
    """Raise `CheckpointError` for an unknown engine."""
    if engine not in _WRITERS:
        raise CheckpointError(f"There is no engine {shown(engine)}. Known: {', '.join(_WRITERS)}.")


def _require(engine: str, checks: Mapping[str, bool]) -> None:
    """Raise `CheckpointError` with every problem whose check is False."""
    problems = [problem for problem, holds in checks.items() if not holds]
    if problems:
        raise CheckpointError(f"{engine} cannot serve this model: {'; '.join(problems)}.")


SGLANG_TOWER_WIDTH = 1152
SGLANG_TILE = 448
SGLANG_SCALES = (448, 896, 1344)
SGLANG_TILES = (1, 12)


def _export_sglang(checkpoint: Checkpoint, path: Path, max_shard_bytes: int) -> None:
    """Write format `nvila`, if the model has the sizes that SGLang's two classes fix besides the format's design."""
    config = checkpoint.config
    require_design(config)
    size, width, scales = config.vision_tower.image_size, config.vision_tower.hidden_size, config.dynamic_s2
    preprocess = config.preprocess
    checks = {
        f"the vision tower is {width} wide, not {SGLANG_TOWER_WIDTH}": width == SGLANG_TOWER_WIDTH,
        f"its images have {size} pixels a side, not {SGLANG_TILE}": size == SGLANG_TILE,
        "its prompts have time tokens": config.time_tokens is None,
    }
    aspect, tiles = preprocess.image_aspect_ratio, (preprocess.min_tiles, preprocess.max_tiles)
    if scales is not None:
        checks |= {
            f"images are cut as '{aspect}', not 'dynamic_s2'": aspect == "dynamic_s2",
            f"the scales are {scales.scales}, not {SGLANG_SCALES}": scales.scales == SGLANG_SCALES,
            "features are not merged to the last scale": scales.resize_output_to_scale_idx in (-1, 2),
        }
    else:
        checks |= {
            f"images are cut as '{aspect}', not 'dynamic'": aspect == "dynamic",
            f"an image has {tiles[0]} to {tiles[1]} tiles, not 1 to 12": tiles == SGLANG_TILES,
        }
    _require("SGLang", checks)
    write_nvila(checkpoint, path, max_shard_bytes)


def _export_tensorrt_llm(checkpoint: Checkpoint, path: Path, max_shard_bytes: int) -> None:
    """Write format `vila`, with the keys by which TensorRT-LLM finds the parts.

    It joins the last name of each part's `_name_or_path` to the root, and reads the projector's weights only if
    `resume_path` is set.
    """
    config = checkpoint.config
    _require("TensorRT-LLM", _tensorrt_llm_checks(config) | _template_checks(config, path))
    with new_folder(path, sum(entry.nbytes for entry in checkpoint.weights.entries.values())) as folder:
        fill_vila(checkpoint, folder, max_shard_bytes)
        for name, stated in _tensorrt_llm_keys(config).items():
            write_json(folder / name, stated | read_json(folder / name))
        parts = {f"{part}_cfg": read_json(folder / part / "config.json") | {"_name_or_path": part} for part in PARTS}
        write_json(folder / "config.json", read_json(folder / "config.json") | parts | {"resume_path": "."})


def _tensorrt_llm_keys(config: VilaConfig) -> dict[str, dict[str, object]]:
    """Return, by file, what it asks for and not every source says. The classes are those of transformers."""
    family = {"siglip": "Siglip", "clip": "CLIP"}[config.vision_tower.name]
    return {
        "llm/config.json": {"model_max_length": config.language_model.max_length},
        "vision_tower/config.json": {"architectures": [f"{family}VisionModel"]},
        "vision_tower/preprocessor_config.json": {"image_processor_type": f"{family}ImageProcessor"},
    }


def _tensorrt_llm_checks(config: VilaConfig) -> dict[str, bool]:
    tower, projector, language_model = config.vision_tower, config.projector.name, config.language_model
    is_known = projector in TENSORRT_LLM_PROJECTORS or projector.endswith("x_gelu")
    image, video = config.image_encoder, config.video_encoder
    return {
        f"the weights are {config.dtype}, not float16 or bfloat16": config.dtype != "float32",
        f"the vision tower is '{tower.name}', not {' or '.join(TENSORRT_LLM_TOWERS)}": tower.name
        in TENSORRT_LLM_TOWERS,
        "the tower's positions are resized as they load": tower.pretrained_image_size is None,
        f"it has no projector '{projector}'": is_known,
        "the language model is not the native decoder": isinstance(language_model, DecoderConfig),
        "a media encoder is not the basic one": type(image) is BasicImageEncoderConfig
        and type(video) is BasicVideoEncoderConfig,
        "images or frames do not end with a newline alone": all(
            (encoder.start_tokens, encoder.end_tokens) == (None, "\n") for encoder in (image, video)
        ),
        "its prompts have time tokens": config.time_tokens is None,
    }


def _template_checks(config: VilaConfig, path: Path) -> dict[str, bool]:
    """Check that TensorRT-LLM would choose the template that the checkpoint states, if it states one."""
    place = str(path.absolute() / "llm").lower()
    chosen = next((template for name, template in TENSORRT_LLM_TEMPLATES.items() if name in place), "auto")
    wanted = config.chat_template
    if wanted is None or wanted == chosen or {wanted, chosen} == {"v1", "vicuna_v1"}:
        return {}
    names = [name for name, template in TENSORRT_LLM_TEMPLATES.items() if template == wanted]
    if names:
        advice = f"name the folder with {' or '.join(names)}"
    elif wanted == "auto":
        advice = f"choose a path without {', '.join(TENSORRT_LLM_TEMPLATES)}"
    else:
        advice = f"it has {', '.join(sorted({*TENSORRT_LLM_TEMPLATES.values(), 'auto'}))}"
    return {f"at {path} it would use the chat template '{chosen}', not '{wanted}' ({advice})": False}


_WRITERS: Mapping[str, Callable[[Checkpoint, Path, int], None]] = {
    "sglang": _export_sglang,
    "tensorrt-llm": _export_tensorrt_llm,
}
