"""The tower's own stage: residual quantization with moving codebooks, and its losses."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vila_core.config import PixelDecoderConfig, RQSiglipConfig
from vila_core.errors import ConfigError
from vila_core.tiles import normalize
from vila_core.towers.rq_siglip.quantizer import ResidualQuantizer
from vila_core.towers.rq_siglip.tower import RQSiglipTower
from vila_train.tiny.data import to_bytes
from vila_train.tiny.world import make_sample
from vila_train.tower_training.config import CodebookSettings, TowerLossConfig
from vila_train.tower_training.losses import reconstruction_loss, sigmoid_contrast
from vila_train.tower_training.module import TowerTraining
from vila_train.tower_training.quantizing import draw_replacements, quantize, update_averages
from vila_train.tower_training.texts import TextEncoder

SIZE = 16
DECODER = PixelDecoderConfig(
    z_channels=32, channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=0, resolution=SIZE
)


def tower_config(**changes: object) -> RQSiglipConfig:
    values: dict[str, object] = {
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "codebook_size": 24,
        "code_depth": 3,
        "keeps_ema": True,
        "decoder": DECODER,
    }
    return RQSiglipConfig.model_validate(values | changes)


def new_quantizer(*, shared: bool = True, size: int = 12, width: int = 5) -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(size, 3, width, shared=shared, keeps_ema=True)
    for book in range(len(quantizer.codebooks)):
        codebook = quantizer.codebook(book)
        with torch.no_grad():
            codebook.weight.normal_()
            codebook.weight[size].zero_()
        codebook.get_buffer("embed_ema").copy_(codebook.embeddings)
        codebook.get_buffer("cluster_size_ema").fill_(1.5)
    return quantizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shared", [True, False])
def test_codes_are_those_of_the_tower_where_codebooks_stay(shared: bool) -> None:
    quantizer = new_quantizer(shared=shared)
    features = torch.randn(40, 5, generator=generator())
    before = copy.deepcopy(quantizer.state_dict())
    found = quantize(quantizer, features, CodebookSettings())
    assert torch.equal(found.codes, quantizer.encode(features))
    torch.testing.assert_close(found.features, quantizer.embed(found.codes))
    difference = features[:, None] - quantizer.cumulative(found.codes)
    torch.testing.assert_close(found.commitment, difference.square().mean())
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_gradients_pass_straight_through_and_the_commitment_pulls_features_to_their_codes() -> None:
    quantizer = new_quantizer()
    features = torch.randn(7, 5, generator=generator(), requires_grad=True)
    found = quantize(quantizer, features, CodebookSettings())
    weights = torch.randn(7, 5, generator=generator(1))
    (found.features * weights).sum().backward(retain_graph=True)
    assert torch.equal(features.grad, weights)
    features.grad = None
    found.commitment.backward()
    sums = quantizer.cumulative(found.codes)  # [P, D, C]
    torch.testing.assert_close(features.grad, 2 * (features[:, None] - sums).mean(dim=1).detach() / features.numel())


def numpy_update(
    sums: NDArray[np.float64],
    sizes: NDArray[np.float64],
    residuals: NDArray[np.float64],
    codes: NDArray[np.int64],
    replacements: NDArray[np.int64],
    decay: float = 0.99,
    epsilon: float = 1e-5,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """RQ-VAE's rule, code by code: the new sums, sizes and embeddings."""
    sums, sizes = sums.copy(), sizes.copy()
    for code in range(len(sizes)):
        own = residuals[codes == code]
        sizes[code] = decay * sizes[code] + (1 - decay) * len(own)
        sums[code] = decay * sums[code] + (1 - decay) * own.sum(axis=0)
        if sizes[code] < 1:
            sums[code], sizes[code] = residuals[replacements[code]], 1
    smoothed = sizes.sum() * (sizes + epsilon) / (sizes.sum() + len(sizes) * epsilon)
    return sums, sizes, sums / smoothed[:, None]


def test_codebooks_move_as_a_plain_computation_says() -> None:
    quantizer = new_quantizer()
    codebook = quantizer.codebook(0)
    codebook.get_buffer("cluster_size_ema")[:4] = torch.tensor([0.2, 1.0, 1.005, 40.0])  # the first two are unused
    draw = generator(3)
    residuals = torch.randn(50, 5, generator=draw)
    codes = torch.randint(3, 12, (50,), generator=draw)
    (replacements, *_) = draw_replacements(quantizer, 50, draw)
    expected = numpy_update(
        codebook.get_buffer("embed_ema").double().numpy(),
        codebook.get_buffer("cluster_size_ema").double().numpy(),
        residuals.double().numpy(),
        codes.numpy(),
        replacements.numpy(),
    )
    update_averages(codebook, residuals, codes, replacements, CodebookSettings())
    found = (codebook.get_buffer("embed_ema"), codebook.get_buffer("cluster_size_ema"), codebook.embeddings)
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert codebook.weight[12].abs().sum() == 0, "the row of zeros stays"


def test_depths_with_a_shared_codebook_move_it_one_after_another() -> None:
    quantizer, again = new_quantizer(), new_quantizer()
    features = torch.randn(60, 5, generator=generator(5))
    replacements = draw_replacements(quantizer, 60, generator(6))
    found = quantize(quantizer, features, CodebookSettings(), replacements)
    residual, codebook = features, again.codebook(0)
    for depth in range(3):
        embeddings = codebook.embeddings.detach().clone()
        nearest = torch.cdist(residual, embeddings).argmin(dim=1)
        assert torch.equal(nearest, found.codes[:, depth])
        update_averages(codebook, residual, nearest, replacements[depth], CodebookSettings())
        residual = residual - embeddings[nearest]
    torch.testing.assert_close(codebook.weight, quantizer.codebook(0).weight)


def test_unused_codes_become_features_and_are_used_then() -> None:
    quantizer = new_quantizer(size=64)
    codebook = quantizer.codebook(0)
    with torch.no_grad():
        codebook.embeddings[1:] += 100  # far from every feature
    codebook.get_buffer("embed_ema").copy_(1.5 * codebook.embeddings)
    features = torch.randn(256, 5, generator=generator())
    used: dict[bool, int] = {}
    for restart in (False, True):
        own = copy.deepcopy(quantizer)
        settings = CodebookSettings(restart_unused=restart)
        for step in range(60):
            quantize(own, features, settings, draw_replacements(own, 256, generator(step)))
        used[restart] = len(own.encode(features)[:, 0].unique())
    assert used[False] <= 2
    assert used[True] >= 24


@pytest.mark.parametrize("positions", [5, 12, 40])
def test_replacements_are_different_positions_where_there_are_enough(positions: int) -> None:
    drawn = draw_replacements(new_quantizer(), positions, generator())
    assert drawn.shape == (3, 12)
    assert 0 <= drawn.min() <= drawn.max() < positions
    for of_depth in drawn:
        assert len(of_depth.unique()) == min(positions, 12)


def test_the_contrast_is_that_of_siglip() -> None:
    pictures, texts = (torch.randn(4, 8, generator=generator(seed), dtype=torch.float32) for seed in (0, 1))
    scale, bias = torch.tensor(3.0), torch.tensor(-1.5)
    logits = (scale * pictures @ texts.T + bias).double().numpy()
    signs = 2 * np.eye(4) - 1
    expected = -np.log(1 / (1 + np.exp(-signs * logits))).sum() / 4
    assert sigmoid_contrast(pictures, texts, scale, bias).item() == pytest.approx(expected, rel=1e-5)


def test_the_reconstruction_loss_is_zero_only_for_equal_pictures() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=generator()) * 2 - 1
    assert reconstruction_loss(pixels, pixels) == 0
    assert reconstruction_loss(pixels + 0.1, pixels).item() == pytest.approx(0.1 + 0.01, rel=1e-4)


def test_texts_read_only_the_tokens_that_count() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(30, 16, 16, 8, num_layers=2)
    ids = torch.randint(30, (3, 12), generator=generator())
    counts = torch.zeros(3, 12, dtype=torch.bool)
    counts[0, 2:9], counts[1, 5:6], counts[2, :] = True, True, True
    features = encoder(ids, counts)
    assert features.shape == (3, 8)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(encoder(torch.where(counts, ids, 7), counts), features)
    shifted = encoder(ids[:1, 2:9], counts[:1, 2:9])
    torch.testing.assert_close(shifted, features[:1], msg="positions are counted within the text")
    assert not torch.allclose(encoder((ids + 1) % 30, counts), features)


def pictures(count: int) -> torch.Tensor:
    """Drawn pictures of 16 pixels, from -1 to 1."""
    values = np.stack([to_bytes(make_sample("train", "caption_things", i).scenes[0], SIZE) for i in range(count)])
    return torch.from_numpy(values).float() / 127.5 - 1


def new_training() -> TowerTraining:
    torch.manual_seed(0)
    return TowerTraining(RQSiglipTower(tower_config()), TextEncoder(20, 8, 16, 32, num_layers=1))


def train(training: TowerTraining, optimizer: torch.optim.Optimizer, steps: range) -> list[dict[str, float]]:
    pixels, ids = pictures(6), torch.arange(6)[:, None].expand(-1, 3)
    found: list[dict[str, float]] = []
    for step in steps:
        training.draw_replacements(6, generator(step))
        losses = training(pixels, ids, torch.ones_like(ids, dtype=torch.bool))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        found.append({name: value.item() for name, value in vars(losses).items()})
    return found


def adam(training: TowerTraining) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in training.parameters() if p.requires_grad], lr=2e-3)


def test_all_losses_go_down_on_a_few_pictures() -> None:
    training = new_training()
    found = train(training, adam(training), range(80))
    first, last = found[0], found[-1]
    assert last["reconstruction"] < 0.5 * first["reconstruction"]
    assert last["contrast"] < 0.5 * first["contrast"]
    assert last["total"] == pytest.approx(
        last["reconstruction"] + 0.25 * last["commitment"] + last["contrast"], rel=1e-4
    )
    assert len(training.tower.encode(pictures(6)).unique()) > 12, "more than half of the codes are used"


def test_a_resumed_training_continues_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = new_training()
    expected = train(whole, adam(whole), range(8))
    first = new_training()
    optimizer = adam(first)
    found = train(first, optimizer, range(4))
    torch.save((first.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    second = new_training()
    optimizer = adam(second)
    weights, moments = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    assert found + train(second, optimizer, range(4, 8)) == expected


def test_validation_leaves_the_codebooks_alone() -> None:
    training = new_training().eval()
    before = copy.deepcopy(training.state_dict())
    training(pictures(2))
    assert all(torch.equal(value, before[name]) for name, value in training.state_dict().items())


def test_towers_that_decode_to_another_size() -> None:
    config = tower_config(decoder=DECODER.model_copy(update={"latent_grid": (3, 3)}))
    torch.manual_seed(0)
    losses = TowerTraining(RQSiglipTower(config), None, TowerLossConfig(contrast=0)).eval()(pictures(2))
    assert losses.reconstruction.isfinite()
    assert losses.contrast == 0


def test_a_tower_without_averages_is_refused() -> None:
    with pytest.raises(ConfigError, match="keeps_ema=True"):
        TowerTraining(RQSiglipTower(tower_config(keeps_ema=False)), None)


def test_pixels_are_normalized_to_the_range_of_the_decoder() -> None:
    """The loss compares decoded pictures with the tower's input: both are -1 to 1 with VILA-U's mean and deviation."""
    from vila_core.config import PixelConfig

    values = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    assert normalize(values, PixelConfig(size=2))[0, 0, 0].tolist() == [-1, 1]
