"""Media encoders and projectors where the recordings do not reach: what bad input gets, and what the budget says."""

import pytest
import torch

from vila_core.config import PROJECTOR_NAMES, BasicVideoEncoderConfig, ProjectorConfig, TSPVideoEncoderConfig
from vila_core.encoders import BasicVideoEncoder, TSPVideoEncoder
from vila_core.errors import ConfigError, MediaError
from vila_core.projectors import build_projector


def embed(text: str) -> torch.Tensor:
    return torch.full((len(text), 4), float(len(text)))


@pytest.mark.parametrize(("frames", "counts"), [(6, "8"), (13, "8 or 16"), (1, "8")])
def test_pooling_says_which_frame_counts_work(frames: int, counts: str):
    encoder = TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=((8, 1, 1),)))
    with pytest.raises(MediaError, match=rf"{frames} frames do not divide.*such as {counts}\."):
        encoder(torch.randn(frames, 16, 4), embed)


def test_pooling_must_divide_the_grid():
    encoder = TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=((1, 3, 1),)))
    with pytest.raises(MediaError, match="4x4 tokens"):
        encoder(torch.randn(2, 16, 4), embed)


@pytest.mark.parametrize(("frames", "t", "h", "w"), [(8, 8, 1, 1), (6, 2, 2, 4), (3, 1, 4, 2)])
def test_pooling_is_a_mean_over_each_box(frames: int, t: int, h: int, w: int):
    torch.manual_seed(0)
    tokens = torch.randn(frames, 16, 4)
    config = TSPVideoEncoderConfig(pool_sizes=((t, h, w),), end_tokens=None)
    boxes = tokens.view(frames // t, t, 4 // h, h, 4 // w, w, 4)
    torch.testing.assert_close(TSPVideoEncoder(config)(tokens, embed), boxes.mean(dim=(1, 3, 5)).flatten(0, 2))


def test_every_frame_is_bracketed():
    encoder = BasicVideoEncoder(BasicVideoEncoderConfig(start_tokens="ab", end_tokens="\n"))
    block = encoder(torch.zeros(3, 5, 4), embed).view(3, 8, 4)
    assert (block[:, :2] == 2).all()
    assert (block[:, 2:7] == 0).all()
    assert (block[:, 7] == 1).all()
    assert list(encoder.texts) == ["ab", "\n"]


@pytest.mark.parametrize("name", PROJECTOR_NAMES)
@pytest.mark.parametrize("side", [1, 7, 9, 16])
def test_projector_knows_how_many_tokens_it_gives(name: str, side: int):
    projector = build_projector(ProjectorConfig(name=name, in_size=12, out_size=12))
    assert projector(torch.randn(2, side * side, 12)).shape == (2, projector.num_tokens(side * side), 12)


def test_unknown_projector():
    with pytest.raises(ConfigError, match="Did you mean 'mlp_downsample'"):
        build_projector(ProjectorConfig(name="mlp_downsampl", in_size=4, out_size=4))
    with pytest.raises(ConfigError, match="identity"):
        build_projector(ProjectorConfig(name="identity", in_size=4, out_size=8))
