"""Format `vila` of the reference implementation: `config.json`, `llm/`, `vision_tower/` and `mm_projector/`.

The root config of a released checkpoint has over a hundred keys, most of them training settings. All are kept in
`Checkpoint.raw_config`, but only those that inference depends on are read. Values are data: an encoder's `_target_` is
looked up by its last component and never imported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pydantic import ValidationError

from vila_core.checkpoint.checkpoint import Checkpoint, RawParts, require_no_head, require_unquantized
from vila_core.checkpoint.configs.encoders import read_encoder
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.configs.plausible import check_layers, read_config
from vila_core.checkpoint.configs.towers import read_pixel_config, read_tower_config
from vila_core.checkpoint.formats.model_card import read_license
from vila_core.checkpoint.formats.tokenizer_files import read_chat_template, read_max_length, require_tokenizer
from vila_core.checkpoint.formats.vila_writer import OWN_KEY, OWN_PREPROCESS_KEYS, PARTS, write_vila
from vila_core.checkpoint.json_files import Section, read_json, read_section
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.checkpoint.tensors.index import WeightIndex, has_weights, index_folder
from vila_core.checkpoint.tensors.shard_writer import DEFAULT_SHARD_BYTES
from vila_core.config import (
    LanguageModelConfig,
    PreprocessConfig,
    ProjectorConfig,
    S2Config,
    TimeTokenConfig,
    VilaConfig,
    VisionTowerConfig,
)
from vila_core.errors import CheckpointError, ConfigError, first_problem
from vila_core.plugins.loader import load_plugins
from vila_core.plugins.registration import Plugins
from vila_core.size_limits import MAX_TIME_TOKENS


@dataclass(frozen=True)
class VilaFormat:
    """The format of the reference implementation."""

    name: str = "vila"

    def detect(self, path: Path) -> bool:
        return model_type_at(path).startswith("llava_") and quantization_at(path) is None and not has_codes(path)

    def read(self, path: Path) -> Checkpoint:
        return read_parts(path, self.name)

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        require_unquantized(checkpoint)
        require_no_head(checkpoint, self.name)
        write_vila(checkpoint, path, max_shard_bytes or DEFAULT_SHARD_BYTES)


def model_type_at(path: Path) -> str:
    """Return the `model_type` of the config in the folder `path`, "" if it cannot be read. Raises nothing."""
    try:
        value = read_json(path / "config.json").get("model_type")
    except CheckpointError:
        return ""
    return value if isinstance(value, str) else ""


def has_codes(path: Path) -> bool:
    """Return whether the tower of the folder `path` is VILA-U's, which the format `vila-u` reads. Raises nothing."""
    try:
        return isinstance(read_json(path / "vision_tower" / "config.json").get("rqvaesiglip"), dict)
    except CheckpointError:
        return False


def quantization_at(path: Path) -> str | None:
    """Return the quantization method of the model in the folder `path`, None if it is not quantized. Raises nothing.

    Quantized models are not read by the formats for unquantized weights. The config's statement comes first; without
    one, a TinyChat file in the folder or in `llm/` counts, since its weights are the ones to read.
    """
    for file in (path / "config.json", path / "llm" / "config.json"):
        try:
            root = read_json(file)
        except CheckpointError:
            continue
        for section in (root, root.get("text_config")):
            found = cast(dict[str, object], section).get("quantization_config") if isinstance(section, dict) else None
            if isinstance(found, dict):
                return str(cast(dict[str, object], found).get("quant_method", "unknown method"))
            if found is not None:
                return "unknown method"
    return "tinychat" if tinychat_files(path) else None


def tinychat_files(path: Path) -> tuple[Path, ...]:
    """Return llm-awq's files (`NAME-w4-g128-awq-v2.pt`) in a model's folder or its `llm/`. Raises nothing."""
    return tuple(sorted(file for folder in (path, path / "llm") for file in folder.glob("*-w*-g*-awq*.pt")))


def read_parts(path: Path, format_name: str, index: WeightIndex | None = None) -> Checkpoint:
    """Read a folder with the three parts; `index` locates its weights, None for the standard places.

    Raises:
        CheckpointError: a part is missing or damaged, or the configs name something unknown or contradict one another.
    """
    for part in PARTS:
        if not (path / part).is_dir():
            raise CheckpointError(
                f"{path} has no folder '{part}'. Expected config.json with {', '.join(PARTS)} beside it."
            )
    root = read_config(path / "config.json")
    require_tokenizer(path / "llm")
    index = index or WeightIndex(index_parts(path, root))
    language = read_config(path / "llm" / "config.json")
    tower = read_config(path / "vision_tower" / "config.json")
    preprocessor_path = path / "vision_tower" / "preprocessor_config.json"
    preprocessor = read_section(preprocessor_path) if preprocessor_path.exists() else None
    template = read_chat_template(path / "llm")
    return Checkpoint(
        path=path,
        format=format_name,
        config=_Reader(root, language, tower, preprocessor, index, load_plugins()).config(path, template),
        weights=index,
        tokenizer_path=path / "llm",
        raw_config=root.values,
        license=read_license(path),
        chat_template=template,
        raw_parts=RawParts(language.values, tower.values, preprocessor.values if preprocessor else {}),
    )


def index_parts(path: Path, root: Section, parts: Sequence[str] = PARTS) -> dict[str, TensorEntry]:
    """Return the tensors of `parts` by canonical name, from their folders or (some remote-code releases) the root."""
    if has_weights(path) and not has_weights(path / "llm"):
        # Here names are those of the reference implementation's modules, which wrap the tower twice.
        entries = index_folder(path, lambda name: name.replace("vision_tower.vision_tower.", "vision_tower."))
        return {
            name: entry
            for name, entry in entries.items()
            if name.partition(".")[0] in parts or len(parts) == len(PARTS)
        }
    return {f"{part}.{name}": entry for part in parts for name, entry in part_weights(path / part, root).items()}


def part_weights(folder: Path, root: Section) -> dict[str, TensorEntry]:
    """Return the tensors of one part; an identity projector has none."""
    if folder.name == "mm_projector" and not has_weights(folder) and _projector_type(folder, root) == "identity":
        return {}
    return index_folder(folder)


def _projector_type(folder: Path, root: Section) -> str:
    config = folder / "config.json"
    section = read_section(config) if config.exists() else root.section("mm_projector_cfg")
    return section.string("mm_projector_type")


class _Reader:
    """Builds the `VilaConfig` of one folder from its JSON files."""

    def __init__(
        self,
        root: Section,
        language: Section,
        tower: Section,
        preprocessor: Section | None,
        weights: WeightIndex,
        plugins: Plugins,
    ):
        self.root = root
        self.language = language
        self.tower = tower
        self.preprocessor = preprocessor
        self.weights = weights
        self.plugins = plugins
        self.own = root.section(OWN_KEY) if OWN_KEY in root else Section({}, root.source)

    def config(self, path: Path, template: str | None) -> VilaConfig:
        check_layers(self.language, self.weights.with_prefix("llm."))
        language_model = read_language_config(self.language, read_max_length(path / "llm", self.language))
        tower = read_tower_config(
            self.tower, self.root, self.weights.with_prefix("vision_tower."), self.plugins.vision_towers
        )
        if self.root.boolean("ps3", False):
            raise CheckpointError(f"{self.root.source}: 'ps3' is on; PS3 towers are not supported.")
        encoders = self.plugins.media_encoders
        try:
            static, dynamic = self._s2()
            return VilaConfig(
                vision_tower=tower,
                s2=static,
                dynamic_s2=dynamic,
                projector=self._projector(path, tower, language_model, static or dynamic),
                image_encoder=read_encoder(self.root, "image_encoder", "BasicImageEncoder", encoders),
                video_encoder=read_encoder(self.root, "video_encoder", "BasicVideoEncoder", encoders),
                language_model=language_model,
                # Static S2 keeps the detail of its largest scale; dynamic S2 cuts images into tiles of the smallest.
                pixels=read_pixel_config(
                    self.preprocessor, tower, max(static.scales) if static else dynamic.scales[0] if dynamic else None
                ),
                preprocess=self._preprocess(dynamic),
                time_tokens=self._time_tokens(),
                chat_template=self._chat_template(),
                dtype=stored_dtype(self.weights),
            )
        except (ValidationError, ConfigError) as error:
            raise CheckpointError(f"{self.root.source} does not describe a model: {_message(error)}") from None

    def _s2(self) -> tuple[S2Config | None, S2Config | None]:
        """Return (static, dynamic); at most one is on, and dynamic wins as in the reference."""
        dynamic = self.root.boolean("dynamic_s2", False)
        if not dynamic and not self.root.boolean("s2", False):
            return None, None
        scales = tuple(sorted(self._scales()))
        s2 = S2Config(
            scales=scales,
            max_split_size=self.root.integer("s2_max_split_size", scales[0]),
            resize_output_to_scale_idx=self.root.integer("s2_resize_output_to_scale_idx", 0, minimum=-len(scales)),
        )
        if s2.resize_output_to_scale_idx >= len(scales):
            raise CheckpointError(
                f"{self.root.source}: 's2_resize_output_to_scale_idx' is {s2.resize_output_to_scale_idx}; "
                f"there are {len(scales)} scales."
            )
        return (None, s2) if dynamic else (s2, None)

    def _scales(self) -> Iterator[int]:
        """Yield the sizes in `s2_scales`, a string such as "448,896,1344" or a list."""
        value = self.root.values.get("s2_scales")
        items: list[object] = (
            list(value.split(",")) if isinstance(value, str) else value if isinstance(value, list) else []
        )  # pyright: ignore[reportUnknownVariableType]
        try:
            scales = [int(item) for item in items if isinstance(item, str | int) and not isinstance(item, bool)]
        except ValueError:
            scales = []
        if not scales or len(scales) != len(items) or min(scales) < 1:
            raise CheckpointError(
                f"{self.root.source}: 's2_scales' is {value!r}; expected sizes in pixels such as \"448,896,1344\"."
            )
        return iter(scales)

    def _projector(
        self, path: Path, tower: VisionTowerConfig, language_model: LanguageModelConfig, s2: S2Config | None
    ) -> ProjectorConfig:
        component = self.plugins.projectors.get(_projector_type(path / "mm_projector", self.root))
        width = tower.output_size * (len(s2.scales) if s2 else 1)
        stated = self.root.integer("mm_hidden_size", width)
        if stated != width:
            given = f"the tower gives {tower.output_size} x {width // tower.output_size} scales"
            raise CheckpointError(f"{self.root.source}: 'mm_hidden_size' is {stated}, but {given}.")
        config = component.config_type.model_validate(
            {"name": component.name, "in_size": width, "out_size": language_model.hidden_size}
        )
        assert isinstance(config, ProjectorConfig), component.config_type
        return config

    def _preprocess(self, dynamic: S2Config | None) -> PreprocessConfig:
        aspect = self.root.string("image_aspect_ratio", "other")
        if aspect == "dynamic_s2" and dynamic is None:
            raise CheckpointError(
                f"{self.root.source}: 'image_aspect_ratio' is 'dynamic_s2', but 'dynamic_s2' is not on."
            )
        return PreprocessConfig.model_validate(
            {
                # The reference implementation preprocesses plainly for every other value.
                "image_aspect_ratio": aspect if aspect in ("resize", "pad", "dynamic", "dynamic_s2") else "other",
                "min_tiles": self.root.integer("min_tiles", 1),
                "max_tiles": self.root.integer("max_tiles", 12),
                "video_max_tiles": self.root.integer("video_max_tiles", 1),
                "num_video_frames": self.root.integer("num_video_frames", 8),
                "fps": self.root.number("fps", 0.0, minimum=0.0),
                "s2_scales": dynamic.scales if dynamic else (),
                **{key: self.own.boolean(key, False) for key in OWN_PREPROCESS_KEYS},
            }
        )

    def _time_tokens(self) -> TimeTokenConfig | None:
        count = self.root.integer("num_time_tokens", 0, minimum=0)
        if count > MAX_TIME_TOKENS:
            raise CheckpointError(
                f"{self.root.source}: 'num_time_tokens' is {count}; expected at most {MAX_TIME_TOKENS}."
            )
        return TimeTokenConfig(count=count, format=self.root.string("time_token_format", "<t{t}>")) if count else None

    def _chat_template(self) -> str | None:
        """Return the chat template that the config states: a registered one, "auto" for the tokenizer's own, or None.

        The reference implementation writes `version` (VILA-1.5) or, if that is "auto", the name of the tokenizer's
        Jinja file.
        """
        if "chat_template" in self.own:
            return self.own.string("chat_template")
        version = self.root.values.get("version")
        if isinstance(version, str) and version in self.plugins.chat_templates:
            return version
        return "auto" if version == "auto" or self.root.values.get("chat_template") else None


Dtype = Literal["float32", "bfloat16", "float16"]


def stored_dtype(weights: WeightIndex) -> Dtype:
    """Return the dtype of most of the language model's bytes, not counting the scales of quantized weights."""
    names: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    sizes = dict.fromkeys(names, 0)
    for name, entry in weights.with_prefix("llm.").items():
        if entry.dtype in sizes and not name.endswith((".scales", ".weight_scale")):
            sizes[entry.dtype] += entry.nbytes
    return names[max(sizes, key=lambda name: sizes[name])] if any(sizes.values()) else "float16"


def _message(error: ValidationError | ConfigError) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    return first_problem(error).with_value
