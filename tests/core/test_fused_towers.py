"""Towers of fused operators: in the interpreter against the tower's own operators, and captured on a GPU.

N images, P tokens, D width
"""

import pytest
import torch
from tests.interpreted_kernels import run_interpreted
from torch import nn

from vila_core.config import ClipConfig, ProjectorConfig, SiglipConfig, VisionTowerConfig
from vila_core.projectors import build_projector
from vila_core.tiles import Normalization
from vila_core.towers.captured import BUCKETS, use_fused_tower
from vila_core.towers.clip import ClipTower
from vila_core.towers.fused import fused_refusal
from vila_core.towers.siglip import SiglipTower

SMALL = {
    "image_size": 28, "patch_size": 7, "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3,
    "num_attention_heads": 2, "select_layer": -2,
}  # fmt: skip

INTERPRETED = f"""
import torch
from torch import nn
from vila_core.config import ClipConfig, SiglipConfig
from vila_core.towers import fused_layers
from vila_core.towers.clip import ClipTower
from vila_core.towers.fused import FusedTower
from vila_core.towers.siglip import SiglipTower

torch.manual_seed(0)
for config, kind in (
    (SiglipConfig(**{SMALL}), SiglipTower),
    (SiglipConfig(**{SMALL}, hidden_act="gelu"), SiglipTower),
    (ClipConfig(**{SMALL}), ClipTower),
    (ClipConfig(**{SMALL}, select_feature="cls_patch", hidden_act="relu"), ClipTower),
    (ClipConfig(**{SMALL}, hidden_act="silu"), ClipTower),
):
    for in_place in (1, 10_000):
        fused_layers.IN_PLACE_ROWS = in_place
        tower = kind(config).eval().requires_grad_(False)
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm | nn.Linear):
                nn.init.normal_(module.bias, std=0.5)
        pixels = torch.randn(3, 3, 28, 28)
        with torch.no_grad():
            expected = tower(pixels)
            saved = {{name: tensor.clone() for name, tensor in tower.state_dict().items()}}
            fused = FusedTower(tower)
            assert fused.is_current()
            torch.testing.assert_close(fused(pixels), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(tower(pixels), expected, rtol=0, atol=0)
        after = tower.state_dict()
        assert after.keys() == saved.keys() and all(torch.equal(after[name], saved[name]) for name in saved)
        layer = tower.vision_model.encoder.layers[0]
        handle = layer.mlp.register_forward_hook(lambda *_: None)
        assert not fused.is_current(), "a hook must see the layers run"
        handle.remove()
        assert fused.is_current()
        layer.mlp.fc2.bias.add_(1)
        assert not fused.is_current(), "a weight was written to"
        fused = FusedTower(tower)
        layer.mlp.fc1 = nn.Linear(48, 100)
        assert not fused.is_current(), "a module was replaced"
"""


def test_a_fused_tower_equals_the_tower() -> None:
    run_interpreted(INTERPRETED)


def test_a_tower_on_a_cpu_keeps_its_own_operators(recwarn: pytest.WarningsRecorder) -> None:
    tower = SiglipTower(SiglipConfig.model_validate(SMALL))
    use_fused_tower(tower, torch.float32)
    assert tower(torch.randn(1, 3, 28, 28)).shape == (1, 16, 48)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("dtype", "act", "has_triton", "reason"),
    [
        (torch.float32, "gelu", True, "not float32"),
        (torch.bfloat16, "gelu", False, "Triton is not installed"),
        (torch.bfloat16, "mish", True, "no activation 'mish'"),
    ],
)
def test_a_tower_that_cannot_be_fused_says_why(
    dtype: torch.dtype, act: str, has_triton: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vila_core.ops.support.find_spec", lambda _: object() if has_triton else None)
    tower = SiglipTower(SiglipConfig.model_validate(SMALL))
    tower.config = tower.config.model_copy(update={"hidden_act": act})
    assert reason in (fused_refusal(tower, torch.device("cuda"), dtype) or "")


def random_tower(config: VisionTowerConfig, dtype: torch.dtype) -> SiglipTower | ClipTower:
    tower = SiglipTower(config) if isinstance(config, SiglipConfig) else ClipTower(config)  # pyright: ignore[reportArgumentType]
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            nn.init.normal_(module.bias, std=0.3)
    return tower.to("cuda", dtype).eval().requires_grad_(False)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize(
    ("dtype", "captures"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True)]
)
@pytest.mark.parametrize(
    "config",
    [
        SiglipConfig(image_size=224, patch_size=14, hidden_size=1152, intermediate_size=4304, num_hidden_layers=3,
                     num_attention_heads=16, select_layer=-1),
        ClipConfig(image_size=336, patch_size=14, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                   num_attention_heads=4, select_layer=-2),
    ],
    ids=["siglip", "clip"],
)  # fmt: skip
@torch.no_grad()
def test_a_fused_tower_on_a_gpu(config: VisionTowerConfig, dtype: torch.dtype, captures: bool) -> None:
    torch.manual_seed(0)
    tower = random_tower(config, dtype)
    exact = random_tower(config, torch.float32)
    exact.load_state_dict(tower.state_dict())
    use_fused_tower(tower, dtype, captures=captures)
    for count in (1, 5, 3, BUCKETS[-1] + 1, 5):
        pixels = torch.randn(count, 3, config.image_size, config.image_size, device="cuda")
        expected = exact(pixels)
        features = tower(pixels)
        again = tower(pixels)
        error = ((features.float() - expected).norm() / expected.norm()).item()
        assert features.shape == expected.shape
        assert error < 0.02, f"{count} tiles: {error:.1e}"
        assert torch.equal(features, again)
        alone = tower(pixels[:1])
        assert ((alone.float() - expected[:1]).norm() / expected[:1].norm()).item() < 0.02
    exact.vision_model.encoder.layers[0].mlp.fc2.bias.add_(1)
    tower.vision_model.encoder.layers[0].mlp.fc2.bias.add_(1)
    expected = exact(pixels)
    assert ((tower(pixels).float() - expected).norm() / expected.norm()).item() < 0.02, "the graph has old weights"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@torch.no_grad()
def test_a_graph_reads_bytes_and_projects_features_on_a_gpu() -> None:
    torch.manual_seed(0)
    config = SiglipConfig(
        image_size=224, patch_size=14, hidden_size=256, intermediate_size=1024, num_hidden_layers=3,
        num_attention_heads=4, select_layer=-2,
    )  # fmt: skip
    tower = random_tower(config, torch.bfloat16)
    use_fused_tower(tower, torch.bfloat16)
    with torch.device("cuda"):
        projector = build_projector(ProjectorConfig(name="mlp_downsample", in_size=256, out_size=96))
    projector = projector.to(torch.bfloat16).eval().requires_grad_(False)
    table = Normalization((0.5, 0.4, 0.3), (0.5, 0.6, 0.7)).table(torch.device("cuda"), torch.bfloat16)

    def parts(*counts: int) -> list[torch.Tensor]:
        pictures = [torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8) for count in counts]
        return [picture.permute(0, 3, 1, 2) for picture in pictures]

    def close(tokens: torch.Tensor | None, wanted: torch.Tensor) -> bool:
        assert tokens is not None
        return tokens.shape == wanted.shape and ((tokens - wanted).norm() / wanted.norm()).item() < 0.02

    def expected(values: list[torch.Tensor]) -> torch.Tensor:
        return projector(tower(table(torch.cat(values).cuda())))

    for values in (parts(1), parts(2, 3), parts(1), [parts(1)[0].contiguous()]):
        for _ in range(2):
            assert close(tower.encode_bytes(values, table, projector), expected(values))
    assert close(tower.encode_bytes(values, table, None), tower(table(values[0].cuda())))
    before = expected(values)
    projector.layers[-1].bias.add_(3)  # pyright: ignore[reportIndexIssue]
    tower.vision_model.encoder.layers[0].mlp.fc2.bias.add_(1)
    assert not close(expected(values), before)
    assert close(tower.encode_bytes(values, table, projector), expected(values)), "the graph has old weights"
    for watched in (projector, projector.layers[-1], tower, tower.vision_model.encoder.layers[0]):  # pyright: ignore[reportIndexIssue]
        handle = watched.register_forward_hook(lambda *_: None)
        assert tower.encode_bytes(values, table, projector) is None, "a hook must see the modules run"
        handle.remove()
    assert close(tower.encode_bytes(values, table, projector), expected(values))
    assert tower.encode_bytes(parts(BUCKETS[-1] + 1), table, projector) is None
    assert tower.encode_bytes([values[0][..., :-14]], table, projector) is None
