"""Static and dynamic S2 and feature selection against recordings of the reference (golden/functions/s2)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vila_core.config import S2Config, SiglipConfig
from vila_core.towers.s2 import merge_chessboard, merge_scales, multiscale, split_chessboard
from vila_core.towers.siglip import SiglipTower

GOLDEN = Path(__file__).parent / "data" / "golden"
RECORDS = json.loads((GOLDEN / "functions" / "s2.json").read_text())
CHESS = [record for record in RECORDS if "chess" in record]
MERGES = [record for record in RECORDS if "merge" in record]
STATIC = [record for record in RECORDS if "static_s2" in record]


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "functions" / "s2.safetensors")


def siglip_56(select_layer: int = -2, select_feature: str = "cls_patch") -> SiglipTower:
    folder = GOLDEN / "nvila_56" / "checkpoint" / "vision_tower"
    fields = json.loads((folder / "config.json").read_text())
    config = {name: fields[name] for name in SiglipConfig.model_fields if name in fields}
    tower = SiglipTower(SiglipConfig(**config, select_layer=select_layer, select_feature=select_feature))
    tower.load_state_dict(load_file(folder / "model.safetensors"))
    return tower.eval()


@pytest.mark.parametrize("record", CHESS, ids=lambda r: f"{r['rows']}x{r['cols']}")
def test_chessboard_is_exact(record, recorded):
    name, rows, cols = f"chess{record['chess']}", record["rows"], record["cols"]
    merged = merge_chessboard(recorded[f"{name}.in"], rows, cols)
    assert torch.equal(merged, recorded[f"{name}.merged"])
    assert torch.equal(split_chessboard(merged, rows, cols), recorded[f"{name}.split"])


@pytest.mark.parametrize("record", MERGES, ids=lambda r: f"merge{r['merge']}")
def test_dynamic_s2_is_exact(record, recorded):
    name = f"merge{record['merge']}"
    scales = tuple(record["scales"])
    config = S2Config(
        scales=scales, max_split_size=scales[0], resize_output_to_scale_idx=record["resize_output_to_scale_idx"]
    )
    blocks = [block and tuple(block) for block in record["block_sizes"]]
    maps, new_blocks = merge_scales(recorded[f"{name}.in"], blocks, config)
    assert new_blocks == [tuple(block) for block in record["new_block_sizes"]]
    for number, merged in enumerate(maps):
        torch.testing.assert_close(
            merged, recorded[f"{name}.out{number}"], rtol=0, atol=1e-6, msg=f"{name}.out{number}"
        )


@pytest.mark.parametrize("record", STATIC, ids=lambda r: f"idx{r['resize_output_to_scale_idx']}")
def test_static_s2(record, recorded):
    index = record["resize_output_to_scale_idx"]
    config = S2Config(scales=(168, 56, 112), max_split_size=56, resize_output_to_scale_idx=index)
    features = multiscale(siglip_56(), recorded["static_s2.in"], config)
    torch.testing.assert_close(features, recorded[f"static_s2.idx{index}.out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("select_layer", [-1, -2, -3, 0, 2])
def test_feature_selection(select_layer, select_feature, recorded):
    features = siglip_56(select_layer, select_feature)(recorded["select.in"])
    torch.testing.assert_close(features, recorded[f"select.layer{select_layer}.{select_feature}"], rtol=1e-4, atol=1e-4)


def test_positions_are_resized_where_the_reference_zeroes_rows(recorded):
    """Quirk 14: the resize of the reference leaves rows 0, 7, 14, ... zero and mixes neighbors in a flat grid."""
    config = siglip_56().config.model_copy(update={"image_size": 84, "pretrained_image_size": 56})
    resized = SiglipTower(config).adapt_weight(
        "vision_model.embeddings.position_embedding.weight", recorded["posresize.old"]
    )
    assert resized.shape == recorded["posresize.84"].shape
    assert (recorded["posresize.84"][[0, 7, 14, 21, 28, 35]] == 0).all()
    assert (resized.norm(dim=1) > 0.1 * recorded["posresize.old"].norm(dim=1).mean()).all()
