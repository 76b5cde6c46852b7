"""The preprocessing arguments of `vila_core.load`, and names that other libraries use for its arguments."""

from collections.abc import Mapping
from typing import Literal, TypedDict

from vila_core.display.signatures import named_settings


class _FromCheckpoint:
    """The default of an argument that a checkpoint states."""

    def __repr__(self) -> str:
        return "<the checkpoint's>"


class PreprocessSettings(TypedDict, total=False):
    """New values for the fields of `PreprocessConfig`.

    Attributes:
        image_aspect_ratio: how images become tiles: resize, dynamic, dynamic_s2, pad or other.
        min_tiles: fewest tiles of an image.
        max_tiles: most tiles of an image.
        video_max_tiles: most tiles of a video frame.
        num_video_frames: frames to sample from a video.
        fps: frames to sample per second, at most num_video_frames; 0 samples by count.
        s2_scales: sizes in pixels of dynamic S2.
        tile_all: tile every image of a prompt, not only a single one.
        video_as_images: give video frames to the image encoder.
    """

    image_aspect_ratio: Literal["resize", "dynamic", "dynamic_s2", "pad", "other"]
    min_tiles: int
    max_tiles: int
    video_max_tiles: int
    num_video_frames: int
    fps: float
    s2_scales: tuple[int, ...]
    tile_all: bool
    video_as_images: bool


_DEFAULTS = dict.fromkeys(PreprocessSettings.__annotations__, _FromCheckpoint())

takes_preprocess_settings = named_settings(
    PreprocessSettings, _DEFAULTS, heading="Preprocessing (default: the checkpoint's values)"
)

_QUANTIZED = "Weights are not quantized while loading: quantize once with `vila-quant awq MODEL OUT`, then load OUT."
OTHER_NAMES: Mapping[str, str] = {
    "torch_dtype": "Use dtype=, such as dtype='bfloat16'.",
    **dict.fromkeys(("precision", "torch_type"), "Use dtype=, such as dtype='bfloat16'."),
    **dict.fromkeys(("max_memory", "device_id", "gpu_id"), "Use device=, such as device='cuda:0'."),
    **dict.fromkeys(("conv_mode", "conv_template", "template", "prompt_template"), "Use chat_template=."),
    "cache_dir": "Set the environment variable HF_HOME, or HF_HUB_CACHE, before starting Python.",
    **dict.fromkeys(
        ("model_path", "model_name", "model", "model_id", "pretrained_model_name_or_path", "model_base"),
        "Give the folder or hub id as the first argument: vila_core.load('owner/name').",
    ),
    "trust_remote_code": "Leave it out: the code of a checkpoint is never run.",
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "load_4bit", "load_8bit", "quantization_config"), _QUANTIZED),
    **dict.fromkeys(
        ("attn_implementation", "use_flash_attention_2", "use_flash_attn"),
        "Leave it out: torch chooses the fastest attention.",
    ),
    **dict.fromkeys(("use_auth_token", "hf_token", "auth_token"), "Use token=."),
    "local_files_only": "Use offline=True.",
    **dict.fromkeys(("lora_path", "adapter", "peft_model_id", "adapter_path"), "Use lora=, a folder or hub id."),
    **dict.fromkeys(("model_max_length", "context_length", "max_length"), "The context is the checkpoint's own."),
    **dict.fromkeys(("num_frames", "max_frames", "nframes"), "Use num_video_frames=."),
    **dict.fromkeys(
        ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "json_schema"),
        "It is an argument of generate: model.generate(prompt, max_new_tokens=64).",
    ),
    **dict.fromkeys(("low_cpu_mem_usage", "use_safetensors", "use_fast"), "Leave it out: it has no effect here."),
}
"""Names of other libraries -> what to use instead."""
