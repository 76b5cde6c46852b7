"""The tower's config of a VILA-U checkpoint: `vision_tower/config.json` <-> tower and generation head.

The file has two halves, `rqvaesiglip` (tower, quantizer, decoder) and `rqtransformer` (depth transformer). It does not
have SigLIP's own sizes, but names a repository of the hub. Nothing is downloaded: the sizes come from a folder of that
name in the checkpoint, else from a table of the two known towers, else from the shapes of the weights.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from vila_core.checkpoint.configs.plausible import check_layers
from vila_core.checkpoint.json_files import Section, read_section
from vila_core.checkpoint.tensors.headers import TensorEntry
from vila_core.config import DepthTransformerConfig, PixelDecoderConfig, RQSiglipConfig
from vila_core.errors import CheckpointError, first_problem, shown
from vila_core.size_limits import MAX_CODE_DEPTH, MAX_DECODER_LEVELS

TOWER_HALF, HEAD_HALF = "rqvaesiglip", "rqtransformer"
SIDECAR = "siglip"
"""Folder that a written checkpoint describes an unknown SigLIP in."""

KNOWN_TOWERS: Mapping[str, Mapping[str, int]] = {
    "siglip-large-patch16-256": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 16,
        "image_size": 256,
    },
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "patch_size": 14,
        "image_size": 384,
    },
}
"""Google's SigLIP releases that VILA-U was built on, by the last part of their names."""
_HEADS_BY_WIDTH = {768: 12, 1024: 16, 1152: 16}
"""Attention heads of all SigLIP releases; shapes do not show them."""
_LAYER = re.compile(r"siglip_model\.vision_model\.encoder\.layers\.(\d+)\.")
_CODEBOOK = re.compile(r"quantizer\.codebooks\.(\d+)\.weight")


def read_rq_siglip(
    raw: Section, root: Section, folder: Path, weights: Mapping[str, TensorEntry], image_size: int | None
) -> RQSiglipConfig:
    """Translate the tower's half of `vision_tower/config.json`.

    Args:
        raw: the file.
        root: the root config.
        folder: the checkpoint's, in which a folder may describe SigLIP.
        weights: the tower's, by canonical name.
        image_size: of the preprocessor, None if it does not say.

    Raises:
        CheckpointError: a value is missing, of the wrong type or out of range, or contradicts the weights.
    """
    half = raw.section(TOWER_HALF)
    sizes = _siglip_sizes(half, folder, weights, image_size)
    width, depth = sizes["hidden_size"], _shape(half, "code_shape")[2]
    if depth > MAX_CODE_DEPTH:
        raise CheckpointError(
            f"{half.source}: 'code_shape' has {depth} codes per position; the limit is {MAX_CODE_DEPTH}."
        )
    for key, value in (
        ("embed_dim", half.integer("embed_dim", width)),
        ("hidden_size", raw.integer("hidden_size", width)),
    ):
        if value != width:
            raise CheckpointError(f"{raw.source}: '{key}' is {value}, but SigLIP's width is {width}.")
    side = sizes["image_size"] // sizes["patch_size"]
    for key in ("latent_shape", "code_shape"):
        if key in half and (grid := _shape(half, key)[:2]) != (side, side):
            raise CheckpointError(
                f"{half.source}: '{key}' has a grid of {grid[0]}x{grid[1]}, but SigLIP makes {side}x{side} features. "
                "Grids that differ are not supported."
            )
    books = _count_codebooks(half, weights, depth)
    fields: dict[str, object] = {
        **sizes,
        "select_layer": root.integer("mm_vision_select_layer", -2, minimum=None),
        "use_head": any(name.startswith("siglip_model.vision_model.head.") for name in weights),
        "codebook_size": _codebook_size(half, weights),
        "code_depth": depth,
        "shared_codebook": books == 1,
        "keeps_ema": all(
            f"quantizer.codebooks.{book}.{name}" in weights
            for book in range(books)
            for name in ("embed_ema", "cluster_size_ema")
        ),
    }
    try:
        return RQSiglipConfig.model_validate({**fields, "decoder": _decoder_config(half)})
    except ValidationError as error:
        raise CheckpointError(f"{half.source} does not describe a tower: {first_problem(error).with_value}") from None


def _decoder_config(half: Section) -> PixelDecoderConfig:
    raw = half.section("ddconfig")
    if (channels := raw.integer("out_ch", 3)) != 3:
        raise CheckpointError(f"{raw.source}: 'out_ch' is {channels}; expected 3, the channels of a picture.")
    grid = _integers(half, "decoder_latent_shape", 3) if "decoder_latent_shape" in half else None
    if grid is not None and len(grid) < 2:
        raise CheckpointError(f"{half.source}: 'decoder_latent_shape' is {list(grid)}; expected height and width.")
    try:
        return PixelDecoderConfig(
            z_channels=raw.integer("z_channels"),
            channels=raw.integer("ch"),
            channel_multipliers=_integers(raw, "ch_mult", MAX_DECODER_LEVELS),
            num_res_blocks=raw.integer("num_res_blocks", minimum=0),
            attention_resolutions=_integers(raw, "attn_resolutions", MAX_DECODER_LEVELS, empty=True),
            resolution=raw.integer("resolution"),
            latent_grid=None if grid is None else (grid[0], grid[1]),
        )
    except ValidationError as error:
        raise CheckpointError(f"{raw.source} does not describe a decoder: {first_problem(error).with_value}") from None


def _codebook_size(half: Section, weights: Mapping[str, TensorEntry]) -> int:
    size = half.integer("n_embed")
    stored = weights["quantizer.codebooks.0.weight"].shape if "quantizer.codebooks.0.weight" in weights else None
    if stored is not None and stored[0] != size + 1:
        raise CheckpointError(
            f"{half.source}: 'n_embed' is {size}, but the codebook holds {list(stored)}; expected {size + 1} rows "
            "(one is padding)."
        )
    return size


def _count_codebooks(half: Section, weights: Mapping[str, TensorEntry], depth: int) -> int:
    """Return 1 or `depth`: files with a shared codebook hold it once (safetensors) or `depth` times (pickles)."""
    found = {int(match.group(1)) for name in weights if (match := _CODEBOOK.fullmatch(name))}
    if found == set(range(depth)) or (found == {0} and half.boolean("shared_codebook", False)):
        return len(found)
    shared = "shared" if half.boolean("shared_codebook", False) else "separate"
    expected = f"0 or 0 to {depth - 1}" if shared == "shared" else f"0 to {depth - 1}"
    raise CheckpointError(
        f"{half.source}: the weights hold the codebooks {sorted(found)[:10] or 'none'}; expected {expected} "
        f"({shared} codebooks, {depth} codes per position)."
    )


def _siglip_sizes(
    half: Section, folder: Path, weights: Mapping[str, TensorEntry], image_size: int | None
) -> dict[str, int]:
    name = half.string("pretrained_model", "")
    found = _sizes_of_shapes(half, weights, image_size)
    stated = _sidecar_sizes(folder, name) or KNOWN_TOWERS.get(name.rstrip("/").rpartition("/")[2])
    if stated is None:
        width = found["hidden_size"]
        if width not in _HEADS_BY_WIDTH:
            raise CheckpointError(
                f"{half.source}: 'pretrained_model' is {shown(name)}, which is not known here, and the weights do not "
                f"show how many attention heads a SigLIP of width {width} has. Put the config.json of that SigLIP into "
                f"the folder '{SIDECAR}' of the checkpoint, and write its name ('{SIDECAR}') there."
            )
        return {**found, "num_attention_heads": _HEADS_BY_WIDTH[width]}
    for key, value in found.items():
        if key != "image_size" and stated[key] != value:
            raise CheckpointError(
                f"{half.source}: 'pretrained_model' is {shown(name)} with {key} {stated[key]}, but the weights have "
                f"{value}."
            )
    positions = (stated["image_size"] // stated["patch_size"]) ** 2
    if positions != (found["image_size"] // found["patch_size"]) ** 2:
        raise CheckpointError(
            f"{half.source}: 'pretrained_model' is {shown(name)} with {positions} patches, but the weights have "
            f"{(found['image_size'] // found['patch_size']) ** 2} positions."
        )
    return dict(stated)


def _sidecar_sizes(folder: Path, name: str) -> Mapping[str, int] | None:
    """Return what a folder of the checkpoint says; names that lead out of the checkpoint are not followed."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        return None
    file = folder.joinpath(*parts) / "config.json"
    try:
        if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
            return None
    except OSError:  # too long for a file's name
        return None
    raw = read_section(file)
    if "vision_config" in raw:
        raw = raw.section("vision_config")
    keys = next(iter(KNOWN_TOWERS.values()))
    return {key: raw.integer(key) for key in keys}


def _sizes_of_shapes(half: Section, weights: Mapping[str, TensorEntry], image_size: int | None) -> dict[str, int]:
    prefix = "siglip_model.vision_model."
    names = {
        "patch": f"{prefix}embeddings.patch_embedding.weight",
        "position": f"{prefix}embeddings.position_embedding.weight",
        "mlp": f"{prefix}encoder.layers.0.mlp.fc1.weight",
    }
    shapes = {key: weights[name].shape for key, name in names.items() if name in weights}
    expected = {"patch": 4, "position": 2, "mlp": 2}
    for key, name in names.items():
        if key not in shapes or len(shapes[key]) != expected[key] or min(shapes[key]) < 1:
            raise CheckpointError(
                f"{half.source}: the weights have no usable '{TOWER_HALF}.{name}': the SigLIP part of the tower is "
                "missing or damaged. Download the checkpoint again."
            )
    width, _, patch, _ = shapes["patch"]
    side = math.isqrt(shapes["position"][0])
    if image_size is None or image_size // patch != side:
        image_size = side * patch
    layers = {int(match.group(1)) for name in weights if (match := _LAYER.match(name))}
    return {
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "intermediate_size": shapes["mlp"][0],
        "patch_size": patch,
        "image_size": image_size,
    }


def read_depth_transformer(raw: Section, root: Section, weights: Mapping[str, TensorEntry]) -> DepthTransformerConfig:
    """Translate the depth transformer's half of `vision_tower/config.json`.

    Raises:
        CheckpointError: a value is missing, of the wrong type or out of range.
    """
    half = raw.section(HEAD_HALF)
    height, width, depth = _shape(half, "block_size")
    head = half.section("head")
    check_layers(head, weights)
    has_video = root.boolean("mm_use_vi_start_end", False)
    try:
        return DepthTransformerConfig(
            hidden_size=half.integer("input_embed_dim_2"),
            embed_dim=half.integer("embed_dim"),
            num_hidden_layers=head.integer("n_layer"),
            num_attention_heads=head.section("block").integer("n_head"),
            code_width=half.integer("input_embed_dim_1"),
            codebook_size=half.integer("vocab_size"),
            code_depth=depth,
            grid=(height, width),
            video_start_token="<vi_start>" if has_video else None,
            video_end_token="<vi_end>" if has_video else None,
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{half.source} does not describe a depth transformer: {first_problem(error).with_value}"
        ) from None


def _shape(section: Section, key: str) -> tuple[int, int, int]:
    values = _integers(section, key, 3)
    if len(values) != 3:
        raise CheckpointError(f"{section.source}: '{key}' is {list(values)}; expected height, width and depth.")
    return values[0], values[1], values[2]


def _integers(section: Section, key: str, most: int, *, empty: bool = False) -> tuple[int, ...]:
    """Return a list of at most `most` whole numbers above 0."""
    value = section.values.get(key)
    items = cast("list[object]", value) if isinstance(value, list) else None
    if items is None or len(items) > most or not (items or empty):
        raise CheckpointError(f"{section.source}: '{key}' is {shown(value)}; expected a list of up to {most} numbers.")
    return tuple(Section({key: item}, section.source).integer(key) for item in items)


def write_rq_tower(
    tower: RQSiglipConfig, head: DepthTransformerConfig, raw: Mapping[str, object], dtype: str
) -> dict[str, object]:
    """Return the JSON of `vision_tower/config.json`. Keys of `raw` that are not known here are kept."""
    rows, columns = tower.grid
    decoder = tower.decoder
    own_tower: dict[str, object] = {
        "code_shape": [rows, columns, tower.code_depth],
        "latent_shape": [rows, columns, tower.hidden_size],
        "embed_dim": tower.hidden_size,
        "n_embed": tower.codebook_size,
        "decoder_latent_shape": None if decoder.latent_grid is None else list(decoder.latent_grid),
    }
    pixels: dict[str, object] = {
        "z_channels": decoder.z_channels,
        "ch": decoder.channels,
        "ch_mult": list(decoder.channel_multipliers),
        "num_res_blocks": decoder.num_res_blocks,
        "attn_resolutions": list(decoder.attention_resolutions),
        "resolution": decoder.resolution,
        "in_channels": 3,
        "out_ch": 3,
    }
    own_head: dict[str, object] = {
        "block_size": [*head.grid, head.code_depth],
        "input_embed_dim_1": head.code_width,
        "input_embed_dim_2": head.hidden_size,
        "embed_dim": head.embed_dim,
        "vocab_size": head.codebook_size,
    }
    known_tower = _object(raw, TOWER_HALF) or {
        "architectures": ["RQVAESiglipModel"],
        "model_type": "rqvaesiglip_model",
        "decay": 0.99,
        "latent_loss_weight": 0.25,
        "restart_unused_codes": True,
    }
    known_head = _object(raw, HEAD_HALF) or {"architectures": ["RQTransformer"], "model_type": "rqtransformer_model"}
    dropped = {"double_z": False, "dropout": 0.0} | _object(known_tower, "ddconfig")
    layers = _object(known_head, "head")
    heads = _object(layers, "block") | {"n_head": head.num_attention_heads}
    return {
        "architectures": ["RQVAESIGLIPTransformer"],
        "model_type": "rqvaesigliptransformer_model",
        "torch_dtype": dtype,
        **raw,
        "hidden_size": tower.hidden_size,
        TOWER_HALF: {
            **known_tower,
            **own_tower,
            "shared_codebook": known_tower.get("shared_codebook", tower.shared_codebook),
            "pretrained_model": pretrained_name(tower, known_tower),
            "ddconfig": dropped | pixels,
        },
        HEAD_HALF: {**known_head, **own_head, "head": {**layers, "n_layer": head.num_hidden_layers, "block": heads}},
    }


def pretrained_name(tower: RQSiglipConfig, raw: Mapping[str, object]) -> str:
    """Return the name of a known SigLIP of these sizes, else the name of the folder that describes it."""
    stated = str(raw.get("pretrained_model", ""))
    for name, sizes in KNOWN_TOWERS.items():
        if all(getattr(tower, key) == value for key, value in sizes.items()):
            return stated if stated.rpartition("/")[2] == name else f"google/{name}"
    return SIDECAR


def write_sidecar(tower: RQSiglipConfig) -> dict[str, object]:
    """Return the `config.json` of a SigLIP that is not among the known ones, as transformers writes it."""
    sizes = {key: getattr(tower, key) for key in next(iter(KNOWN_TOWERS.values()))}
    fields = {"model_type": "siglip_vision_model", "hidden_act": tower.hidden_act, "num_channels": tower.num_channels}
    text = {"model_type": "siglip_text_model", "hidden_size": tower.hidden_size}
    vision = {**fields, **sizes, "layer_norm_eps": tower.layer_norm_eps}
    return {"model_type": "siglip", "vision_config": vision, "text_config": text}


def _object(values: Mapping[str, object], key: str) -> dict[str, object]:
    value = values.get(key)
    return dict(cast("dict[str, object]", value)) if isinstance(value, dict) else {}
