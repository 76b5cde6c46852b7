"""Format `nvila`: one transformers-style folder with `model_type` `nvila` or `nvila_lite`, which SGLang serves.

    config.json                text_config (Qwen2), vision_config (SigLIP), image_token_id, video_token_id
    model.safetensors          llm.*  vision_tower.*  mm_projector.layers.*
    preprocessor_config.json   SigLIP's
    tokenizer.json …           at the root
    vila_config.json           ours, optional: settings for which the format has no key

The two model types imply two fixed designs, which their config does not state
(sglang/srt/models/nvila.py, nvila_lite.py):

| model type | preprocessing | projector | features |
| --- | --- | --- | --- |
| `nvila` | dynamic S2 at 1x, 2x and 3x the tower's size, merged to the last scale | 2x2 | hidden state -2 |
| `nvila_lite` | dynamic tiles, 1 to 12 | 3x3 | hidden state -2 |

`vila_config.json` holds a complete `VilaConfig`; other readers ignore it.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vila_core.checkpoint.checkpoint import Checkpoint, RawParts, require_no_head, require_unquantized
from vila_core.checkpoint.configs.config_json import parse_config
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.configs.plausible import check_layers, read_config
from vila_core.checkpoint.configs.towers import read_pixel_config, read_tower_config
from vila_core.checkpoint.formats.model_card import read_license
from vila_core.checkpoint.formats.nvila_writer import SIDECAR, write_nvila
from vila_core.checkpoint.formats.tokenizer_files import read_chat_template, read_max_length, require_tokenizer
from vila_core.checkpoint.formats.vila import model_type_at, quantization_at, stored_dtype
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.tensors.index import WeightIndex, index_folder
from vila_core.checkpoint.tensors.shard_writer import DEFAULT_SHARD_BYTES
from vila_core.config import PreprocessConfig, ProjectorConfig, S2Config, VilaConfig
from vila_core.errors import CheckpointError, first_problem
from vila_core.plugins.loader import load_plugins
from vila_core.plugins.registration import Plugins

MODEL_TYPES = ("nvila", "nvila_lite")

QWEN2_DEFAULTS: dict[str, object] = {
    "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 22016,
    "max_position_embeddings": 32768, "max_window_layers": 28, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
"""transformers omits values of a nested config that equal the defaults of its class."""

SIGLIP_DEFAULTS: dict[str, object] = {
    "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "hidden_size": 768, "image_size": 224,
    "intermediate_size": 3072, "layer_norm_eps": 1e-6, "num_attention_heads": 12, "num_channels": 3,
    "num_hidden_layers": 12, "patch_size": 16,
}  # fmt: skip


@dataclass(frozen=True)
class NvilaFormat:
    """The format that SGLang serves."""

    name: str = "nvila"

    def detect(self, path: Path) -> bool:
        return model_type_at(path) in MODEL_TYPES and quantization_at(path) is None

    def read(self, path: Path) -> Checkpoint:
        return read_nvila(path, self.name)

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        require_unquantized(checkpoint)
        require_no_head(checkpoint, self.name)
        write_nvila(checkpoint, path, max_shard_bytes or DEFAULT_SHARD_BYTES)


def read_nvila(path: Path, format_name: str) -> Checkpoint:
    """Read a folder of this format.

    Raises:
        CheckpointError: a file is missing or damaged, or the configs name something unknown or contradict one another.
    """
    root = read_config(path / "config.json")
    require_tokenizer(path)
    weights = WeightIndex(index_folder(path))
    text = _with_defaults(root, "text_config", QWEN2_DEFAULTS)
    vision = _with_defaults(root, "vision_config", SIGLIP_DEFAULTS)
    preprocessor = read_section(path / "preprocessor_config.json")
    config = _released_config(path, root, text, vision, preprocessor, weights, load_plugins())
    return Checkpoint(
        path=path,
        format=format_name,
        config=_own_config(path, config, load_plugins()),
        weights=weights,
        tokenizer_path=path,
        raw_config=root.values,
        license=read_license(path),
        chat_template=read_chat_template(path),
        raw_parts=RawParts(text.values, vision.values, preprocessor.values),
    )


def _with_defaults(root: Section, key: str, defaults: dict[str, object]) -> Section:
    section = root.section(key)
    return Section({**defaults, **section.values}, section.source)


def _released_config(
    path: Path,
    root: Section,
    text: Section,
    vision: Section,
    preprocessor: Section,
    weights: WeightIndex,
    plugins: Plugins,
) -> VilaConfig:
    """Return the config of the design that the model type stands for."""
    is_lite = root.string("model_type") == "nvila_lite"
    selection = Section({"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch"}, root.source)
    tower = read_tower_config(vision, selection, weights.with_prefix("vision_tower."), plugins.vision_towers)
    size = tower.image_size
    check_layers(text, weights.with_prefix("llm."))
    language_model = read_language_config(text, read_max_length(path, text))
    try:
        s2 = (
            None
            if is_lite
            else S2Config(scales=(size, 2 * size, 3 * size), max_split_size=size, resize_output_to_scale_idx=-1)
        )
        return VilaConfig(
            vision_tower=tower,
            dynamic_s2=s2,
            projector=ProjectorConfig(
                name="mlp_downsample_3x3_fix" if is_lite else "mlp_downsample_2x2_fix",
                in_size=tower.output_size * (len(s2.scales) if s2 else 1),
                out_size=language_model.hidden_size,
            ),
            language_model=language_model,
            pixels=read_pixel_config(preprocessor, tower, size if s2 else None),
            preprocess=PreprocessConfig(
                image_aspect_ratio="dynamic" if is_lite else "dynamic_s2",
                s2_scales=s2.scales if s2 else (),
                num_video_frames=8,
            ),
            dtype=stored_dtype(weights),
        )
    except ValidationError as error:
        raise CheckpointError(f"{root.source} does not describe a model: {first_problem(error).with_value}") from None


def _own_config(path: Path, released: VilaConfig, plugins: Plugins) -> VilaConfig:
    """Return the config in `vila_config.json` if it exists and is for the same network."""
    if not (path / SIDECAR).exists():
        return released
    config = parse_config(read_config(path / SIDECAR), plugins)
    if config.language_model != released.language_model or config.vision_tower != released.vision_tower:
        raise CheckpointError(
            f"{path / SIDECAR} contradicts {path / 'config.json'}. Remove it to go by config.json alone."
        )
    return config
