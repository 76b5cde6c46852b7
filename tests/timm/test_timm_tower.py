"""The timm tower against timm's forward pass, and RADIO against a network of timm blocks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vila_core.config import RadioConfig, TimmConfig
from vila_core.errors import ConfigError
from vila_core.towers.radio import RadioTower

timm = pytest.importorskip("timm", reason="comes with vila-core[timm]")

from timm.models.vision_transformer import Block  # noqa: E402

from vila_core.towers.timm import TimmTower  # noqa: E402

MODELS = {  # name: patch size, width, layers, prefix tokens
    "test_vit": (16, 64, 6, 1),
    "test_vit2": (16, 64, 8, 1),
    "test_vit_relpos": (16, 96, 9, 0),
    "deit_tiny_distilled_patch16_224": (16, 192, 12, 2),
    "eva02_tiny_patch14_224": (14, 192, 12, 1),
}
every_model = pytest.mark.parametrize("model_name", MODELS)


def config_for(model_name: str, image_size: int = 70, **fields: object) -> TimmConfig:
    patch_size, hidden_size, _, _ = MODELS[model_name]
    image_size -= image_size % patch_size
    return TimmConfig(
        model_name=model_name, image_size=image_size, patch_size=patch_size, hidden_size=hidden_size, **fields
    )


def build(config: TimmConfig) -> TimmTower:
    torch.manual_seed(2)
    tower = TimmTower(config)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return tower.eval()


def pixels_for(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def outputs_of_blocks(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The output of each block in a full forward pass."""
    caught: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _block, _inputs, output: caught.append(output)) for block in model.blocks
    ]
    model.forward_features(pixels)
    for handle in handles:
        handle.remove()
    return caught


@every_model
@pytest.mark.parametrize("select_layer", [-1, -2, 3])
def test_features_are_the_output_of_the_layer(model_name, select_layer):
    _, _, layers, num_prefix_tokens = MODELS[model_name]
    for select_feature, first in (("patch", num_prefix_tokens), ("cls_patch", 0)):
        tower = build(config_for(model_name, select_layer=select_layer, select_feature=select_feature))
        pixels = pixels_for(tower.config.image_size)
        with torch.no_grad():
            want = outputs_of_blocks(tower.model, pixels)[select_layer % (layers + 1) - 1][:, first:]
            torch.testing.assert_close(tower(pixels), want, rtol=1e-5, atol=1e-5)
        assert want.shape[1] == (tower.config.image_size // tower.config.patch_size) ** 2 + num_prefix_tokens - first


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_buffers_of_a_tower_built_on_the_meta_device(model_name, dtype):
    """As in the loader: build on the meta device, load all saved weights, then reset the other buffers."""
    whole = build(config_for(model_name))
    with torch.device("meta"):
        tower = TimmTower(whole.config)
    tower.load_state_dict({name: tensor.to(dtype) for name, tensor in whole.state_dict().items()}, assign=True)
    tower.reset_buffers(torch.device("cpu"), dtype)
    pixels = pixels_for(whole.config.image_size)
    with torch.no_grad():
        got = tower.eval()(pixels)
        want = whole.to(dtype)(pixels)
    assert got.dtype == dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("model_name", ["test_vit", "test_vit2", "eva02_tiny_patch14_224"])
def test_positions_of_another_resolution_are_adapted(model_name):
    old = build(config_for(model_name, image_size=70))
    config = config_for(model_name, image_size=112)
    tower = build(config.model_copy(update={"pretrained_image_size": old.config.image_size}))
    adapted = {name: tower.adapt_weight(name, tensor) for name, tensor in old.state_dict().items()}
    tower.load_state_dict(adapted)
    kept = tower.model.pos_embed.shape[1] - (112 // config.patch_size) ** 2
    assert torch.equal(tower.model.pos_embed[:, :kept], old.model.pos_embed[:, :kept])
    assert torch.isfinite(tower(pixels_for(112))).all()


@every_model
def test_gradients_reach_the_patches_and_stop_at_the_layer(model_name):
    tower = build(config_for(model_name, select_layer=2))
    tower(pixels_for(tower.config.image_size)).square().sum().backward()
    assert tower.model.patch_embed.proj.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in tower.model.blocks[2].parameters())


def test_initial_weights():
    tower = build(config_for("test_vit"))
    for tensor in tower.parameters():
        tensor.data.fill_(torch.nan)
    tower.reset_parameters()
    assert torch.isfinite(tower(pixels_for(tower.config.image_size))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "vit_tinny_patch16_224"}, r"Unknown timm model 'vit_tinny_patch16_224'.*vit_tiny_patch16_224"),
        ({"model_name": "resnet18"}, r"'resnet18' is a ResNet. The timm tower supports plain vision transformers"),
        ({"model_name": "samvit_base_patch16"}, r"VisionTransformerSAM"),
        ({"hidden_size": 65}, r"has width 64 and 4 x 4 patches, but .* mean 65 and 4 x 4"),
        ({"patch_size": 8}, r"has width 64 and 4 x 4 patches, but .* mean 64 and 8 x 8"),
        ({"select_layer": 0}, r"select_layer 0 is the embedding"),
        ({"select_layer": -8}, r"a tower of 6 layers has hidden states -7 to 6"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        TimmTower(config_for("test_vit").model_copy(update=change))


def test_pixels_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match=r"expects floating-point \[N, 3, 64, 64\]"):
        build(config_for("test_vit"))(torch.zeros(1, 3, 80, 80))


@pytest.mark.parametrize("image_size", [32, 48, 80])
@pytest.mark.parametrize("final_norm", [True, False])
def test_radio_equals_timm_blocks_after_a_patch_generator(image_size, final_norm):
    """RADIO's hub code runs timm blocks; this test has its own patch generator."""
    config = RadioConfig(
        image_size=image_size,
        patch_size=16,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_image_size=80,
        num_summary_tokens=3,
        num_registers=5,
        final_norm=final_norm,
    )
    torch.manual_seed(4)
    tower = RadioTower(config).eval()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    blocks = nn.Sequential(*[Block(32, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)) for _ in range(3)])
    blocks.load_state_dict(tower.radio_model.model.blocks.state_dict())
    generator = tower.radio_model.model.patch_generator
    pixels = pixels_for(image_size)
    with torch.no_grad():
        kernel = generator.embedder.weight.view(32, 3, 16, 16)
        patches = F.conv2d(pixels, kernel, stride=16).flatten(2).transpose(1, 2)
        table = generator.pos_embed.view(1, 5, 5, 32).permute(0, 3, 1, 2)
        positions = F.interpolate(table, size=image_size // 16, mode="bilinear").flatten(2).transpose(1, 2)
        hidden = torch.cat([generator.cls_token.token.expand(2, -1, -1), patches + positions], dim=1)
        hidden = blocks.eval()(hidden)
        want = tower.radio_model.model.norm(hidden) if final_norm else hidden
        torch.testing.assert_close(tower(pixels), want[:, 8:], rtol=1e-5, atol=1e-5)
