"""Media encoders and projectors where the recordings do not reach: what bad input gets, and what the budget says."""

import pytest
import torch

from vila_core.config import BasicVideoEncoderConfig, ProjectorConfig, TSPVideoEncoderConfig
from vila_core.encoders import BasicVideoEncoder, TSPVideoEncoder, expand
from vila_core.errors import ConfigError, MediaError, PromptError
from vila_core.projectors import build_projector


@pytest.mark.parametrize(("frames", "counts"), [(6, "8"), (13, "8 or 16"), (1, "8")])
def test_pooling_says_which_frame_counts_work(frames: int, counts: str):
    encoder = TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=((8, 1, 1),)))
    for call in (lambda: encoder.layout(frames, 16), lambda: encoder(torch.randn(frames, 16, 4))):
        with pytest.raises(MediaError, match=rf"{frames} is not a multiple of 8\. Use {counts} frames"):
            call()


def test_pooling_must_divide_the_grid():
    encoder = TSPVideoEncoder(TSPVideoEncoderConfig(pool_sizes=((1, 3, 1),)))
    for call in (lambda: encoder.layout(2, 16), lambda: encoder(torch.randn(2, 16, 4))):
        with pytest.raises(MediaError, match="4x4 tokens"):
            call()


@pytest.mark.parametrize(("frames", "t", "h", "w"), [(8, 8, 1, 1), (6, 2, 2, 4), (3, 1, 4, 2)])
def test_pooling_is_a_mean_over_each_box(frames: int, t: int, h: int, w: int):
    torch.manual_seed(0)
    tokens = torch.randn(frames, 16, 4)
    config = TSPVideoEncoderConfig(pool_sizes=((t, h, w),), end_tokens=None)
    boxes = tokens.view(frames // t, t, 4 // h, h, 4 // w, w, 4)
    torch.testing.assert_close(TSPVideoEncoder(config)(tokens), boxes.mean(dim=(1, 3, 5)).flatten(0, 2))


def test_every_frame_is_bracketed():
    encoder = BasicVideoEncoder(BasicVideoEncoderConfig(start_tokens="ab", end_tokens="\n"))
    assert encoder.layout(3, 5) == ["ab", 5, "\n"] * 3
    assert encoder(torch.zeros(3, 5, 4)).shape == (15, 4)
    assert list(encoder.texts) == ["ab", "\n"]


def test_expanding_a_prompt_makes_room_for_its_media():
    layouts = [("video", [["a", 2, "b", 1]]), ("image", [[1], [1]])]
    expanded = expand([5, 90, 6, 91, 91, 7], layouts, {90: "video", 91: "image"}, {"a": [1], "b": [2, 3]})
    assert expanded.ids == [5, 1, 0, 0, 2, 3, 0, 6, 0, 0, 7]
    assert expanded.places == [2, 3, 6, 8, 9]
    assert expanded.blocks == [[range(1, 7)], [range(8, 9), range(9, 10)]]
    assert expanded.media_lengths == [6, 2]


@pytest.mark.parametrize(
    ("input_ids", "message"),
    [([91, 91], "more image tokens"), ([5], "no token for its last 1"), ([90], "token for one video.*'image'")],
)
def test_media_and_their_tokens_must_agree(input_ids: list[int], message: str):
    with pytest.raises(PromptError, match=message):
        expand(input_ids, [("image", [[1]])], {90: "video", 91: "image"}, {})


def test_unknown_projector():
    with pytest.raises(ConfigError, match="Did you mean 'mlp_downsample'"):
        build_projector(ProjectorConfig(name="mlp_downsampl", in_size=4, out_size=4))
    with pytest.raises(ConfigError, match="identity"):
        build_projector(ProjectorConfig(name="identity", in_size=4, out_size=8))
