"""Compares towers with transformers, or with oracles in plain torch if transformers does not have them."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from vila_core.config import (
    ClipConfig,
    InternVitConfig,
    RadioConfig,
    S2Config,
    SiglipConfig,
    TimmConfig,
    VisionTowerConfig,
)
from vila_core.errors import ConfigError, MissingDependencyError
from vila_core.towers.clip import ClipTower
from vila_core.towers.intern_vit import InternVitTower
from vila_core.towers.positions import resize_positions
from vila_core.towers.radio import RadioTower
from vila_core.towers.s2 import merge_chessboard, merge_scales, multiscale, split_chessboard
from vila_core.towers.siglip import SiglipTower
from vila_core.towers.vit import VisionTower, activation

SIZES = {"patch_size": 14, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
TOWERS = {
    "siglip": (SiglipTower, SiglipConfig(image_size=47, use_head=True, **SIZES)),
    "clip": (ClipTower, ClipConfig(image_size=47, **SIZES)),
    "intern_vit": (InternVitTower, InternVitConfig(image_size=47, **SIZES)),
    "radio": (
        RadioTower,
        RadioConfig(
            image_size=42, max_image_size=70, num_registers=2, final_norm=True, normalize_features=True, **SIZES
        ),
    ),
}
family = pytest.mark.parametrize("name", TOWERS)


def build(name: str, **changes: object) -> VisionTower:
    tower_type, config = TOWERS[name]
    torch.manual_seed(3)
    tower = tower_type(config.model_copy(update=changes))
    for parameter in tower.parameters():  # so that norms, biases and layer scales have an effect
        torch.nn.init.normal_(parameter, mean=parameter.mean().item() if parameter.numel() > 1 else 0.0, std=0.2)
    return tower.eval()


def pixels_for(config: VisionTowerConfig, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(11))


def assert_close(got: torch.Tensor, want: torch.Tensor, relative: float, name: str) -> None:
    assert got.shape == want.shape, name
    error = (got.double() - want.double()).abs().max() / want.double().abs().max()
    assert error <= relative, f"{name}: max error {error:.2e} of the largest value, allowed {relative:.0e}"


def selected(hidden_states: tuple[torch.Tensor, ...], layer: int, feature: str) -> torch.Tensor:
    return hidden_states[layer][:, 1:] if feature == "patch" else hidden_states[layer]


@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("select_layer", [-4, -3, -2, -1, 0, 1, 3])
@pytest.mark.parametrize(("image_size", "use_head"), [(42, True), (47, False), (75, False)])
def test_siglip_equals_transformers(image_size, use_head, select_layer, select_feature):
    torch.manual_seed(0)
    theirs = SiglipVisionModel(SiglipVisionConfig(image_size=image_size, vision_use_head=use_head, **SIZES)).eval()
    ours = SiglipTower(
        SiglipConfig(
            image_size=image_size, use_head=use_head, select_layer=select_layer, select_feature=select_feature, **SIZES
        )
    )
    ours.load_state_dict({f"vision_model.{name}": tensor for name, tensor in theirs.state_dict().items()})
    pixels = pixels_for(ours.config)
    with torch.no_grad():
        want = selected(theirs(pixels, output_hidden_states=True).hidden_states, select_layer, select_feature)
        assert_close(ours(pixels), want, 1e-5, "features")
        if use_head:
            assert_close(ours.pool(pixels), theirs(pixels).pooler_output, 1e-5, "pooled")


@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("select_layer", [-4, -2, -1, 0, 3])
@pytest.mark.parametrize("image_size", [42, 47])
def test_clip_equals_transformers(image_size, select_layer, select_feature):
    torch.manual_seed(0)
    theirs = CLIPVisionModel(CLIPVisionConfig(image_size=image_size, projection_dim=8, **SIZES)).eval()
    ours = ClipTower(
        ClipConfig(image_size=image_size, select_layer=select_layer, select_feature=select_feature, **SIZES)
    )
    ours.load_state_dict({f"vision_model.{name}": tensor for name, tensor in theirs.state_dict().items()})
    pixels = pixels_for(ours.config)
    with torch.no_grad():
        want = selected(theirs(pixels, output_hidden_states=True).hidden_states, select_layer, select_feature)
        assert_close(ours(pixels), want, 1e-5, "features")


def oracle_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention over the tokens `[P, D]` of one image, head by head."""
    width = q.shape[-1] // heads
    outs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        outs.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), dim=-1) @ v[:, part])
    return torch.cat(outs, dim=-1)


def oracle_intern_vit(
    state: dict[str, torch.Tensor], pixels: torch.Tensor, config: InternVitConfig
) -> list[torch.Tensor]:
    """Every hidden state `[P, D]` of one image `[3, S, S]`, with the formulas in the README of the recordings."""

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.layer_norm_eps) * weight

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        if config.norm_type == "rms_norm":
            return rms(x, state[f"{name}.weight"])
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred
            / torch.sqrt((centred * centred).mean(-1, keepdim=True) + config.layer_norm_eps)
            * state[f"{name}.weight"]
            + state[f"{name}.bias"]
        )

    grid, patch = config.image_size // config.patch_size, config.patch_size
    kernel = state["embeddings.patch_embedding.weight"].flatten(1)
    rows = [state["embeddings.class_embedding"][0, 0]]
    for i in range(grid):
        for j in range(grid):
            window = pixels[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten()
            rows.append(kernel @ window + state["embeddings.patch_embedding.bias"])
    hidden = torch.stack(rows) + state["embeddings.position_embedding"][0]
    states = [hidden]
    for layer in range(config.num_hidden_layers):
        at = f"encoder.layers.{layer}"
        qkv = norm(hidden, f"{at}.norm1") @ state[f"{at}.attn.qkv.weight"].T
        if config.qkv_bias:
            qkv = qkv + state[f"{at}.attn.qkv.bias"]
        q, k, v = (
            qkv[:, : config.hidden_size],
            qkv[:, config.hidden_size : 2 * config.hidden_size],
            qkv[:, 2 * config.hidden_size :],
        )
        if config.qk_normalization:
            q, k = rms(q, state[f"{at}.attn.q_norm.weight"]), rms(k, state[f"{at}.attn.k_norm.weight"])
        out = (
            oracle_attention(q, k, v, config.num_attention_heads) @ state[f"{at}.attn.proj.weight"].T
            + state[f"{at}.attn.proj.bias"]
        )
        hidden = hidden + state[f"{at}.ls1"] * out
        inner = norm(hidden, f"{at}.norm2") @ state[f"{at}.mlp.fc1.weight"].T + state[f"{at}.mlp.fc1.bias"]
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        hidden = hidden + state[f"{at}.ls2"] * (inner @ state[f"{at}.mlp.fc2.weight"].T + state[f"{at}.mlp.fc2.bias"])
        states.append(hidden)
    return states


@pytest.mark.parametrize(
    "kind",
    [
        {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False},
        {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True},
    ],
    ids=["6b", "300m"],
)
@pytest.mark.parametrize("select_layer", [-2, -1, 0])
def test_intern_vit_equals_oracle(kind, select_layer):
    tower = build("intern_vit", select_layer=select_layer, **kind)
    pixels = pixels_for(tower.config)
    with torch.no_grad():
        got = tower(pixels)
        for image, features in zip(pixels, got, strict=True):
            assert_close(
                features, oracle_intern_vit(tower.state_dict(), image, tower.config)[select_layer][1:], 1e-5, "features"
            )


def oracle_radio(state: dict[str, torch.Tensor], pixels: torch.Tensor, config: RadioConfig, depth: int) -> torch.Tensor:
    """Patches `[P, D]` of one image after `depth` blocks, with positions from explicit bilinear weights."""
    grid, big = config.image_size // config.patch_size, config.max_image_size // config.patch_size
    at = "radio_model.model.patch_generator"
    table = state[f"{at}.pos_embed"][0].view(big, big, -1)

    def line(i: int) -> list[tuple[int, float]]:
        source = max((i + 0.5) * big / grid - 0.5, 0.0)
        low = min(int(source), big - 1)
        return [(low, 1 - (source - low)), (min(low + 1, big - 1), source - low)]

    rows = [*state[f"{at}.cls_token.token"]]
    for i in range(grid):
        for j in range(grid):
            patch = config.patch_size
            window = pixels[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten()
            position = sum(wi * wj * table[a, b] for a, wi in line(i) for b, wj in line(j))
            rows.append(state[f"{at}.embedder.weight"] @ window + position)
    hidden = torch.stack(rows)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], config.layer_norm_eps)

    for block in range(depth):
        at = f"radio_model.model.blocks.{block}"
        q, k, v = linear(norm(hidden, f"{at}.norm1"), f"{at}.attn.qkv").split(config.hidden_size, dim=-1)
        hidden = hidden + linear(oracle_attention(q, k, v, config.num_attention_heads), f"{at}.attn.proj")
        hidden = hidden + linear(F.gelu(linear(norm(hidden, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    if depth == config.num_hidden_layers and config.final_norm:
        hidden = norm(hidden, "radio_model.model.norm")
    features = hidden[config.num_summary_tokens + config.num_registers :]
    if depth == config.num_hidden_layers and config.normalize_features:
        features = (features - state["radio_model.feature_normalizer.mean"]) @ state[
            "radio_model.feature_normalizer.tx"
        ].T
    return features


@pytest.mark.parametrize("select_layer", [-1, -2])
@pytest.mark.parametrize("image_size", [42, 56, 70, 84], ids=lambda s: f"{s}px")
@pytest.mark.parametrize("extras", [True, False], ids=["normed", "plain"])
def test_radio_equals_oracle(extras, image_size, select_layer):
    tower = build(
        "radio", image_size=image_size, select_layer=select_layer, final_norm=extras, normalize_features=extras
    )
    if extras:
        tower.radio_model.feature_normalizer.mean.normal_()
        tower.radio_model.feature_normalizer.tx.normal_()
    pixels = pixels_for(tower.config)
    with torch.no_grad():
        for image, features in zip(pixels, tower(pixels), strict=True):
            assert_close(features, oracle_radio(tower.state_dict(), image, tower.config, tower.depth), 1e-5, "features")


def test_radio_crops_positions_for_oblong_grids():
    generator = build("radio").radio_model.model.patch_generator
    square = generator.positions(7, 7).unflatten(1, (7, 7))
    assert torch.equal(generator.positions(3, 7).unflatten(1, (3, 7)), square[:, :3])
    assert torch.equal(generator.positions(7, 2).unflatten(1, (7, 2)), square[:, :, :2])


def test_radio_ignores_weights_outside_the_backbone():
    tower = build("radio")
    for name in (
        "radio_model.input_conditioner.norm_mean",
        "radio_model.summary_idxs",
        "radio_model.adaptors.clip.head_mlp.fc1.weight",
    ):
        assert tower.ignores_weight(name), name
    assert not tower.ignores_weight("radio_model.model.blocks.0.ls1.grandma")


@family
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float16, 1e-2), (torch.bfloat16, 8e-2)], ids=["fp16", "bf16"])
def test_half_precision_follows_the_weights(name, dtype, relative):
    tower = build(name)
    pixels = pixels_for(tower.config)
    with torch.no_grad():
        want = tower(pixels)
        got = tower.to(dtype)(pixels)
    assert got.dtype == dtype
    assert_close(got, want, relative, "features")


@family
def test_batch_matches_single_images(name):
    tower = build(name)
    pixels = pixels_for(tower.config, count=3)
    with torch.no_grad():
        assert_close(tower(pixels), torch.cat([tower(pixels[i : i + 1]) for i in range(3)]), 1e-6, "features")


@family
def test_only_used_layers_get_gradients(name):
    tower = build(name, select_layer=-2)
    tower(pixels_for(tower.config)).square().sum().backward()
    trained = {parameter for parameter, tensor in tower.named_parameters() if tensor.grad is not None}
    unused = ("layers.2.", "blocks.2.", "post_layernorm", "head.", "model.norm.")
    assert {parameter for parameter, _ in tower.named_parameters()} - trained == {
        n for n, _ in tower.named_parameters() if any(u in n for u in unused)
    }
    assert all(torch.isfinite(tensor.grad).all() for tensor in tower.parameters() if tensor.grad is not None)


@family
def test_initial_weights(name):
    tower_type, config = TOWERS[name]
    with torch.device("meta"):
        tower = tower_type(config)
    tower.to_empty(device="cpu")
    for tensor in (*tower.parameters(), *tower.buffers()):
        tensor.data.fill_(torch.nan)
    torch.manual_seed(5)
    tower.reset_parameters()
    assert all(torch.isfinite(tensor).all() for tensor in tower.state_dict().values())
    assert 0.1 < tower(pixels_for(config)).std() < 10


@family
def test_compiles_to_one_graph(name):
    tower = build(name)
    pixels = pixels_for(tower.config)
    with torch.no_grad():
        assert torch.equal(torch.compile(tower, backend="eager", fullgraph=True)(pixels), tower(pixels))


@family
@pytest.mark.parametrize(
    "shape",
    [(3, 42, 42), (1, 1, 42, 42), (1, 3, 42, 56), (1, 3, 28, 28), (1, 42, 42, 3)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_pixels_of_another_shape_are_refused(name, shape):
    with pytest.raises(ConfigError, match=r"got pixels .*expects floating-point \[N, 3, 42, 42\]"):
        build(name, image_size=42)(torch.zeros(shape))


def test_integer_pixels_are_refused():
    with pytest.raises(ConfigError, match=r"torch.uint8"):
        build("siglip")(torch.zeros(1, 3, 47, 47, dtype=torch.uint8))


@family
def test_bad_configs_are_refused(name):
    with pytest.raises(ConfigError, match=r"select_layer is -5, but a tower of 3 layers has hidden states -4 to 3"):
        build(name, select_layer=-5)
    with pytest.raises(ConfigError, match=r"hidden_size 24 is not a multiple of num_attention_heads 5"):
        build(name, num_attention_heads=5)
    with pytest.raises(ConfigError, match=r"Unknown activation 'quick_glu'.*Did you mean 'quick_gelu'"):
        build(name, hidden_act="quick_glu")


def test_activations_match_transformers():
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 101)
    for name in ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"):
        torch.testing.assert_close(activation(name)(x), ACT2FN[name](x), msg=name)


def test_pooling_without_a_head_is_refused():
    with pytest.raises(ConfigError, match="no pooling head"):
        build("siglip", use_head=False).pool(torch.zeros(1, 3, 47, 47))


def test_timm_tower_without_timm_says_what_to_install(monkeypatch):
    for module in [m for m in sys.modules if m == "timm" or m.startswith("timm.") or m == "vila_core.towers.timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    from vila_core.plugins.builtins import vila_vision_towers

    component = next(tower for tower in vila_vision_towers() if tower.name == "timm")
    config = TimmConfig(model_name="vit_tiny_patch16_224", image_size=224, patch_size=16, hidden_size=192)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vila-core\[timm\]'"):
        component.build(config)


@pytest.mark.parametrize("image_size", [70, 98, 103])
def test_resized_positions_equal_transformers_interpolation(image_size):
    """transformers interpolates in every forward pass (2-D bicubic); we do it once, at load."""
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, image_size, image_size)
    theirs = SiglipVisionModel(SiglipVisionConfig(image_size=47, **SIZES)).eval()
    ours = SiglipTower(
        SiglipConfig(image_size=image_size, pretrained_image_size=47, use_head=True, select_layer=-1, **SIZES)
    )
    ours.load_state_dict(
        {f"vision_model.{n}": ours.adapt_weight(f"vision_model.{n}", t) for n, t in theirs.state_dict().items()}
    )
    with torch.no_grad():
        want = theirs(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
        assert_close(ours(pixels), want, 1e-5, "features")


@pytest.mark.parametrize(
    ("name", "weight", "prefix"),
    [
        ("siglip", "vision_model.embeddings.position_embedding.weight", 0),
        ("clip", "vision_model.embeddings.position_embedding.weight", 1),
        ("intern_vit", "embeddings.position_embedding", 1),
    ],
)
@pytest.mark.parametrize("image_size", [28, 84, 112])
def test_positions_of_another_resolution_are_adapted(name, weight, prefix, image_size):
    """A linear ramp over the image stays linear, and the class token keeps its position."""
    grid, size = 4, image_size // 14
    tower = build(name, image_size=image_size, pretrained_image_size=56)
    centres = (torch.arange(grid) + 0.5) / grid
    field = (
        torch.stack([centres[:, None].expand(grid, grid), centres.expand(grid, grid)], dim=-1)
        .flatten(0, 1)
        .repeat(1, 12)
    )
    old = torch.cat([torch.full((prefix, 24), 7.0), field])
    old = old[None] if name == "intern_vit" else old
    new = tower.adapt_weight(weight, old)
    assert new.shape == tower.state_dict()[weight].shape
    new = new[0] if name == "intern_vit" else new
    assert torch.equal(new[:prefix], torch.full((prefix, 24), 7.0))
    inner = new[prefix:].unflatten(0, (size, size))[:, :, 0][:, 0]
    middle = slice(size // 4, size - size // 4)  # cubic interpolation is not linear at the border
    torch.testing.assert_close(inner[middle], ((torch.arange(size) + 0.5) / size)[middle], atol=0.06, rtol=0)
    assert (inner.diff() > 0).all()


def test_positions_of_the_wrong_size_stay_unchanged():
    name = "vision_model.embeddings.position_embedding.weight"
    wrong = torch.randn(17, 24)
    assert build("siglip", image_size=84, pretrained_image_size=56).adapt_weight(name, wrong) is wrong
    assert build("siglip", image_size=84).adapt_weight(name, wrong) is wrong
    assert build("siglip", image_size=84, pretrained_image_size=56).adapt_weight("another.weight", wrong) is wrong


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_resized_positions_keep_dtype_and_device(device):
    resized = resize_positions(torch.ones(17, 8, dtype=torch.float16, device=device), 6, num_prefix_tokens=1)
    assert (resized.shape, resized.dtype, resized.device.type) == ((37, 8), torch.float16, device)


@pytest.mark.parametrize(("rows", "cols", "images"), [(1, 1, 1), (2, 3, 1), (4, 1, 2), (3, 5, 3)])
def test_splitting_inverts_merging(rows, cols, images):
    maps = torch.randn(images, 5, rows * 3, cols * 4)
    tiles = split_chessboard(maps, rows, cols)
    assert tiles.shape == (rows * cols * images, 5, 3, 4)
    assert torch.equal(tiles[(1 % cols) * images], maps[0, :, :3, (1 % cols) * 4 : (1 % cols + 1) * 4])
    assert torch.equal(merge_chessboard(tiles, rows, cols), maps)


def test_static_s2_with_one_scale_equals_the_tower():
    tower = build("siglip")
    pixels = pixels_for(tower.config)
    with torch.no_grad():
        assert torch.equal(multiscale(tower, pixels, S2Config(scales=(47,), max_split_size=47)), tower(pixels))


def test_static_s2_keeps_the_weights_dtype():
    tower = build("siglip").half()
    features = multiscale(tower, torch.randn(2, 3, 94, 94), S2Config(scales=(47, 94), max_split_size=47))
    assert (features.shape, features.dtype) == ((2, 9, 48), torch.float16)


def test_s2_errors():
    config = S2Config(scales=(42, 84), max_split_size=42)
    with pytest.raises(ConfigError, match=r"expects floating-point \[N, 3, 47, 47\]"):
        multiscale(build("siglip"), torch.zeros(1, 3, 84, 84), config)
    with pytest.raises(ConfigError, match=r"10 tokens per tile.*select_feature to 'patch'"):
        multiscale(build("clip", image_size=42, select_feature="cls_patch"), torch.zeros(1, 3, 84, 84), config)
    with pytest.raises(ConfigError, match=r"cannot cut a map of 85 x 85 into 3 x 3"):
        multiscale(
            build("siglip", image_size=42), torch.zeros(1, 3, 84, 84), S2Config(scales=(42, 85), max_split_size=42)
        )
    with pytest.raises(ConfigError, match=r"got 4 tiles, but the block sizes .* take 7"):
        merge_scales(torch.zeros(4, 9, 8), [(2, 3)], config)
