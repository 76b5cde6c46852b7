"""Tiling and pixels against the reference."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vila_core.config import PixelConfig, PreprocessConfig
from vila_core.preprocess import aspect_ratios, closest_aspect_ratio, dynamic_tiles, plain_image, preprocess_images
from vila_core.tiles import normalize

SIGLIP = PixelConfig(size=56)
CLIP = PixelConfig(
    size=28,
    resize="shortest_edge",
    crop=True,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def test_candidates_in_the_reference_order(golden: Path):
    recorded = json.loads((golden / "tiling.json").read_text())["target_ratios_sorted_cols_rows"]
    for limits, candidates in recorded.items():
        min_tiles, max_tiles = map(int, limits.split(","))
        assert aspect_ratios(min_tiles, max_tiles) == [tuple(ratio) for ratio in candidates], limits


def test_dynamic_grid(golden: Path):
    recorded = json.loads((golden / "tiling.json").read_text())["dynamic_preprocess"]
    assert len(recorded) > 100
    for record in recorded:
        candidates = aspect_ratios(record["min_num"], record["max_num"])
        assert (
            list(closest_aspect_ratio(*record["wh"], candidates, record["image_size"])) == record["ratio_cols_rows"]
        ), record


def test_dynamic_tiles_have_a_thumbnail(golden: Path):
    recorded = json.loads((golden / "tiling.json").read_text())["dynamic_preprocess"]
    for record in [entry for entry in recorded if entry["use_thumbnail"] and entry["image_size"] == 56][:40]:
        limits = {"min_tiles": record["min_num"], "max_tiles": record["max_num"]}
        tiles, (rows, columns) = dynamic_tiles(Image.new("RGB", tuple(record["wh"])), SIGLIP, **limits)
        assert len(tiles) == record["num_tiles"]
        assert [columns, rows] == record["ratio_cols_rows"]


def test_dynamic_s2_grid(golden: Path):
    recorded = json.loads((golden / "tiling.json").read_text())["dynamic_s2_preprocess"]
    assert recorded
    for record in recorded:
        scales = record["s2_scales"]
        candidates = aspect_ratios((scales[-1] // scales[0]) ** 2, record["max_num"])
        columns, rows = closest_aspect_ratio(*record["wh"], candidates, record["image_size"])
        assert [rows, columns] == record["block_size_rows_cols"], record


def test_image_modes(golden: Path):
    file = golden / "image_modes.safetensors"
    if not file.exists():
        pytest.skip("image_modes is not among these recordings")
    modes = {"resize": "resize", "pad": "pad", "dynamic": "dynamic", "dynamic_s2": "dynamic_s2", "anyother": "other"}
    for key, recorded in load_file(file).items():
        name, mode, tower = key.rsplit(".", 2)
        image = Image.open(golden.parent / "inputs" / name).convert("RGB")
        config = PreprocessConfig.model_validate({"image_aspect_ratio": modes[mode], "s2_scales": (56, 112)})
        of_tower = CLIP if tower.startswith("clip") else SIGLIP
        assert torch.equal(normalize(plain_image(image, of_tower, config), of_tower), recorded), key


def test_recorded_pixels(case):
    """Tiles are equal to those of the reference."""
    from vila_core.media import Image as VilaImage

    parts = [part for turn in case.record["turns"] for part in turn["parts"] if part["type"] != "text"]
    only_images = all(part["type"] == "image" for part in parts)
    if not only_images or case.record["case"].startswith("fp16") or "image" not in case.record.get("pixels", {}):
        pytest.skip("no images, or pixels in fp16")
    from vila_core.checkpoint import open_checkpoint

    config = open_checkpoint(case.checkpoint).config
    overrides = case.record.get("config_overrides") or {}
    preprocess = PreprocessConfig.model_validate({**config.preprocess.model_dump(), **overrides})
    images = [VilaImage(case.inputs / part["file"]).load() for part in parts]
    pixels = torch.cat([tiles.pixels for tiles in preprocess_images(images, config.pixels, preprocess)])
    record = case.record["pixels"]["image"]
    assert list(pixels.shape) == record["shape"]
    assert hashlib.sha256(np.ascontiguousarray(pixels.numpy()).tobytes()).hexdigest() == record["sha256_float32"]
