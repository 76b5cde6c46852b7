"""Format `vila-u`: one model that sees and draws (mit-han-lab/vila-u).

As `vila`, with a tower of two halves in `vision_tower/`: SigLIP with quantizer and decoder, and the depth transformer,
which is this project's generation head. Keys that are not known here are ignored: released files have many.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from vila_core.checkpoint.checkpoint import Checkpoint, RawParts, require_unquantized
from vila_core.checkpoint.configs.language import read_language_config
from vila_core.checkpoint.configs.plausible import check_layers, read_config
from vila_core.checkpoint.configs.towers import read_pixel_config
from vila_core.checkpoint.configs.vila_u import HEAD_HALF, TOWER_HALF, read_depth_transformer, read_rq_siglip
from vila_core.checkpoint.formats.model_card import read_license
from vila_core.checkpoint.formats.tokenizer_files import read_max_length, require_tokenizer
from vila_core.checkpoint.formats.vila import has_codes, index_parts, model_type_at, quantization_at, stored_dtype
from vila_core.checkpoint.formats.vila_u_writer import write_vila_u
from vila_core.checkpoint.formats.vila_writer import OWN_KEY, PARTS
from vila_core.checkpoint.json_files import Section, read_json, read_section
from vila_core.checkpoint.tensors.index import WeightIndex
from vila_core.checkpoint.tensors.shard_writer import DEFAULT_SHARD_BYTES
from vila_core.config import (
    BasicImageEncoderConfig,
    BasicVideoEncoderConfig,
    DepthTransformerConfig,
    LanguageModelConfig,
    PixelConfig,
    PreprocessConfig,
    ProjectorConfig,
    RQSiglipConfig,
    VilaConfig,
)
from vila_core.errors import CheckpointError, ConfigError, first_problem
from vila_core.plugins.loader import load_plugins
from vila_core.size_limits import MAX_CONTEXT

MODEL_TYPE = "vila_u_llama"
CHAT_TEMPLATE = "vicuna_v1"
"""The reference chooses the template by the name of the folder; the released model has this one."""
_HALVES = {TOWER_HALF: "vision_tower.", HEAD_HALF: "generation."}
"""Beginning of a tensor's name in `vision_tower/` -> of its canonical name."""


@dataclass(frozen=True)
class VilaUFormat:
    """The format of VILA-U."""

    name: str = "vila-u"

    def detect(self, path: Path) -> bool:
        return quantization_at(path) is None and is_vila_u(path)

    def read(self, path: Path) -> Checkpoint:
        return read_vila_u(path, self.name)

    def write(self, checkpoint: Checkpoint, path: Path, *, max_shard_bytes: int | None = None) -> None:
        require_unquantized(checkpoint)
        write_vila_u(checkpoint, path, max_shard_bytes or DEFAULT_SHARD_BYTES)


def is_vila_u(path: Path) -> bool:
    """Return whether the folder `path` is VILA-U's, by its config or by its tower's. Raises nothing."""
    return model_type_at(path) == MODEL_TYPE or (has_codes(path) and (path / "config.json").exists())


def read_vila_u(path: Path, format_name: str) -> Checkpoint:
    """Read a folder in VILA-U's layout, of the format `format_name`.

    Raises:
        CheckpointError: a part or one half of the tower is missing, a file is damaged, or configs and weights
            contradict one another.
    """
    _require_parts(path)
    root = read_config(path / "config.json")
    require_tokenizer(path / "llm")
    language = read_config(path / "llm" / "config.json")
    tower = read_config(path / "vision_tower" / "config.json")
    preprocessor_path = path / "vision_tower" / "preprocessor_config.json"
    preprocessor = read_section(preprocessor_path) if preprocessor_path.exists() else None
    index = WeightIndex({canonical_name(name): entry for name, entry in index_parts(path, root).items()})
    _require_halves(path, tower, index)
    return Checkpoint(
        path=path,
        format=format_name,
        config=_read_config(path, root, language, tower, preprocessor, index),
        weights=index,
        tokenizer_path=path / "llm",
        raw_config=root.values,
        license=read_license(path),
        chat_template=None,
        raw_parts=RawParts(language.values, tower.values, preprocessor.values if preprocessor else {}),
    )


def canonical_name(name: str) -> str:
    """Return the name of a stored tensor in the network."""
    part, _, rest = name.partition(".")
    half, _, inner = rest.partition(".")
    return f"{_HALVES[half]}{inner}" if part == "vision_tower" and half in _HALVES else name


def _require_parts(path: Path) -> None:
    missing = [part for part in PARTS if not (path / part).is_dir()]
    if not missing:
        return
    is_text_only = "vision_tower" in missing and "llm" not in missing
    text_only = " This is a text-only checkpoint: without a tower it neither sees nor draws." if is_text_only else ""
    raise CheckpointError(
        f"{path} says that it is VILA-U ('{MODEL_TYPE}'), but has no folder {' and no folder '.join(missing)}."
        f"{text_only} Expected config.json with {', '.join(PARTS)} beside it. Download the complete checkpoint."
    )


def _require_halves(path: Path, tower: Section, index: WeightIndex) -> None:
    """Raise `CheckpointError` if the tower lacks one of its halves, in its config or its weights."""
    purposes = {
        TOWER_HALF: "encoder, codebooks and image decoder; without it the model neither sees nor draws",
        HEAD_HALF: "the depth transformer; without it the model cannot draw",
    }
    for half, purpose in purposes.items():
        if half not in tower:
            raise CheckpointError(f"{tower.source} has no '{half}' ({purpose}). Download the checkpoint again.")
        if not index.with_prefix(_HALVES[half]):
            raise CheckpointError(
                f"The weights in {path / 'vision_tower'} hold no '{half}.*' ({purpose}). Download the checkpoint again."
            )
    decoder = [name for name in index if name.startswith("vision_tower.decoder.")]
    if not decoder:
        raise CheckpointError(
            f"The weights in {path / 'vision_tower'} hold no '{TOWER_HALF}.decoder.*' (the image decoder; without it "
            "the model cannot draw). Download the checkpoint again."
        )


def _read_config(
    path: Path, root: Section, language: Section, tower: Section, preprocessor: Section | None, index: WeightIndex
) -> VilaConfig:
    check_layers(language, index.with_prefix("llm."))
    language_model = read_language_config(language, _context(path / "llm", language))
    image_size = _image_size(preprocessor)
    vision_tower = read_rq_siglip(tower, root, path, index.with_prefix("vision_tower."), image_size)
    own = root.section(OWN_KEY) if OWN_KEY in root else Section({}, root.source)
    head = read_depth_transformer(tower, root, index.with_prefix("generation."))
    head = head.model_copy(update={"knows_empty_prompt": own.boolean("knows_empty_prompt", True)})
    _require_start_tokens(path / "llm", head)
    try:
        return VilaConfig(
            vision_tower=vision_tower,
            projector=_projector(path, root, vision_tower, language_model),
            # Nothing stands around an image, and every frame of a video is an image.
            image_encoder=BasicImageEncoderConfig(end_tokens=None),
            video_encoder=BasicVideoEncoderConfig(end_tokens=None),
            language_model=language_model,
            generation_head=head,
            pixels=_pixels(preprocessor, vision_tower),
            preprocess=PreprocessConfig(
                image_aspect_ratio="pad" if _aspect(root) == "pad" else "resize",
                num_video_frames=root.integer("num_video_frames", 8),
                video_as_images=True,
            ),
            chat_template=_chat_template(root, own),
            text_after_media="\n",
            splits_text_at_media=True,
            dtype=stored_dtype(index),
        )
    except (ValidationError, ConfigError) as error:
        message = first_problem(error).with_value if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(f"{root.source} does not describe a model: {message}") from None


def _projector(
    path: Path, root: Section, tower: RQSiglipConfig, language_model: LanguageModelConfig
) -> ProjectorConfig:
    file = path / "mm_projector" / "config.json"
    section = read_section(file) if file.exists() else root.section("mm_projector_cfg")
    component = load_plugins().projectors.get(section.string("mm_projector_type"))
    config = component.config_type.model_validate(
        {"name": component.name, "in_size": tower.output_size, "out_size": language_model.hidden_size}
    )
    assert isinstance(config, ProjectorConfig), component.config_type
    return config


def _aspect(root: Section) -> str:
    return root.choice("image_aspect_ratio", ("resize", "pad"), "resize")


def _image_size(preprocessor: Section | None) -> int | None:
    """Return the side of the preprocessor's images, None if it does not say."""
    if preprocessor is None:
        return None
    value = preprocessor.values.get("size")
    if isinstance(value, dict) and "height" in value:
        return preprocessor.section("size").integer("height")
    return None


def _pixels(preprocessor: Section | None, tower: RQSiglipConfig) -> PixelConfig:
    pixels = (
        PixelConfig(size=tower.image_size) if preprocessor is None else read_pixel_config(preprocessor, tower, None)
    )
    if preprocessor is not None and pixels.size != tower.image_size:
        raise CheckpointError(
            f"{preprocessor.source} makes images of {pixels.size} pixels, but the tower reads {tower.image_size}."
        )
    return pixels


def _chat_template(root: Section, own: Section) -> str:
    if "chat_template" in own:
        return own.string("chat_template")
    version = root.values.get("version")
    return version if isinstance(version, str) and version in load_plugins().chat_templates else CHAT_TEMPLATE


def _context(folder: Path, language: Section) -> int:
    """Return the context in tokens: what training used, else the positions, times the factor of linear scaling."""
    positions = language.integer("max_position_embeddings")
    stated = read_max_length(folder, language)
    if stated != positions:
        return stated
    scaling = next((language.section(key) for key in ("rope_parameters", "rope_scaling") if key in language), None)
    factor = 1.0 if scaling is None or "factor" not in scaling else scaling.number("factor")
    return min(int(positions * max(factor, 1.0)), MAX_CONTEXT)


def _require_start_tokens(folder: Path, head: DepthTransformerConfig) -> None:
    """Raise `CheckpointError` if the tokenizer's files do not name a token that starts a picture."""
    known = _added_tokens(folder)
    for token in (head.image_start_token, head.video_start_token):
        if token is not None and token not in known:
            raise CheckpointError(
                f"The tokenizer in {folder} has no token '{token}', which starts a picture. "
                "Copy the tokenizer from the original checkpoint."
            )


def _added_tokens(folder: Path) -> set[str]:
    """Return the tokens that were added to a tokenizer, as its JSON files name them."""
    found: set[str] = set()
    if (folder / "added_tokens.json").exists():
        found |= read_json(folder / "added_tokens.json").keys()
    for name, key in (("tokenizer_config.json", "added_tokens_decoder"), ("tokenizer.json", "added_tokens")):
        if not (folder / name).exists():
            continue
        value = read_json(folder / name).get(key)
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        for item in cast("list[object]", items):
            content = cast("dict[str, object]", item).get("content") if isinstance(item, dict) else None
            if isinstance(content, str):
                found.add(content)
    return found
