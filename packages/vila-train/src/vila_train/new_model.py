"""A new model from a language model and a vision tower, read from folders as their makers publish them."""

from pathlib import Path

from pydantic import ValidationError

from vila_core.checkpoint import Checkpoint, RawParts, TensorEntry, WeightIndex
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.configs.plausible import check_layers, read_config
from vila_core.checkpoint.configs.towers import read_pixel_config, read_tower_config
from vila_core.checkpoint.formats.model_card import read_license
from vila_core.checkpoint.formats.tokenizer_files import read_chat_template, read_max_length, require_tokenizer
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.opening import find_folder
from vila_core.checkpoint.tensors.index import index_folder
from vila_core.config import LanguageModelConfig, PixelConfig, ProjectorConfig, VilaConfig, VisionTowerConfig
from vila_core.errors import CheckpointError, ConfigError, first_problem
from vila_core.plugins.loader import load_plugins
from vila_train.config import NewModel

_VISION = "vision_model."
"""Begins the names of a tower's weights where the folder also has a text model, as CLIP's and SigLIP's have."""
SELECTION: dict[str, object] = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch"}
"""The hidden state that all recipes read: the one before the last layer, with all of its tokens."""


def open_parts(new: NewModel) -> Checkpoint:
    """Return the configuration of a new model and the weights of its two trained parts; the projector has none.

    Raises:
        CheckpointError: a part is missing, damaged or of an unknown kind.
        ConfigError: the projector is unknown or does not fit.
    """
    llm = find_folder(new.language_model, kind="language model")
    tower = find_folder(new.vision_tower, kind="vision tower")
    language, of_llm = _read_language_model(llm)
    vision, pixels, of_tower = _read_tower(tower)
    name = load_plugins().projectors.get(new.projector).name
    try:
        config = VilaConfig(
            vision_tower=vision,
            projector=ProjectorConfig(name=name, in_size=vision.output_size, out_size=language.hidden_size),
            language_model=language,
            pixels=pixels,
            chat_template="auto" if read_chat_template(llm) is not None else None,
            dtype="bfloat16",
        )
    except ValidationError as error:
        problem = first_problem(error).with_value
        raise ConfigError(f"{new.language_model} and {new.vision_tower} do not make a model: {problem}.") from None
    return Checkpoint(
        path=llm,
        format="parts",
        config=config,
        weights=WeightIndex({**of_llm, **of_tower}),
        tokenizer_path=llm,
        raw_config={},
        license=read_license(llm),
        chat_template=read_chat_template(llm),
        raw_parts=RawParts(),
    )


def _read_language_model(folder: Path) -> tuple[LanguageModelConfig, dict[str, TensorEntry]]:
    """Return the config of a language model and its weights by canonical name."""
    if (folder / "llm").is_dir():
        raise CheckpointError(
            f"{folder} is a whole model of the VILA family, not a language model. Give {folder / 'llm'} to use its "
            "language model in a new one, or set model.path to train it as it is."
        )
    raw = _read_config(folder, "language model")
    require_tokenizer(folder)
    if "quantization_config" in raw:
        raise CheckpointError(f"{folder} is quantized. Training needs the unquantized language model.")
    entries = index_folder(folder)
    check_layers(raw, entries)
    config = read_language_config(raw, read_max_length(folder, raw))
    return config, {f"llm.{name}": entry for name, entry in entries.items()}


def _read_tower(folder: Path) -> tuple[VisionTowerConfig, PixelConfig, dict[str, TensorEntry]]:
    """Return the config of a vision tower, its pixels, and its weights by canonical name."""
    if (folder / "vision_tower").is_dir():
        raise CheckpointError(
            f"{folder} is a whole model of the VILA family. Give {folder / 'vision_tower'} to use its vision tower."
        )
    raw = _read_config(folder, "vision tower")
    entries = index_folder(folder)
    if any(name.startswith(_VISION) for name in entries):
        entries = {name: entry for name, entry in entries.items() if name.startswith(_VISION)}
    root = Section(SELECTION, "the selection of features")
    config = read_tower_config(raw, root, entries, load_plugins().vision_towers)
    preprocessor = folder / "preprocessor_config.json"
    pixels = read_pixel_config(read_section(preprocessor) if preprocessor.exists() else None, config, None)
    if config.image_size != pixels.size:
        raise CheckpointError(
            f"{preprocessor} resizes to {pixels.size} pixels, but the vision tower takes {config.image_size}."
        )
    return config, pixels, {f"vision_tower.{name}": entry for name, entry in entries.items()}


def _read_config(folder: Path, kind: str) -> Section:
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no config.json. Expected the folder of a {kind}.")
    return read_config(path)
