"""Pictures of extreme shapes are padded and resized like all others, without the memory of the whole square."""

import numpy as np
import PIL.Image
import pytest

import vila_core.preprocess
from vila_core.errors import MediaError
from vila_core.preprocess import RESAMPLE, resize_padded

SHAPES = [(1, 5), (5, 1), (7, 100), (64, 48), (48, 64), (333, 1000), (1001, 17), (40, 20), (3000, 2), (2, 3000), (9, 9)]


def padded_then_resized(image, color, size, resample):
    """What the reference does (`llava/mm_utils.py`, expand2square)."""
    side = max(image.size)
    square = PIL.Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), resample)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("resample", RESAMPLE.values(), ids=RESAMPLE)
@pytest.mark.parametrize("at_once", [1, 3000, 4_000_000])
def test_values_are_those_of_the_whole_square(shape, resample, at_once, monkeypatch):
    monkeypatch.setattr(vila_core.preprocess, "PADDED_AT_ONCE", at_once)
    rng = np.random.default_rng(sum(shape))
    image = PIL.Image.fromarray(rng.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    for size, color in ((28, (122, 116, 104)), (384, (127, 0, 255))):
        found = resize_padded(image, color, size, resample)
        expected = padded_then_resized(image, color, size, resample)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("shape", [(30_000, 1), (30_000, 1000), (100_000, 2), (1, 3000)], ids=str)
def test_wide_pictures_take_little_memory(shape, monkeypatch):
    largest = []
    new = PIL.Image.new

    def measured(mode, size, *more):
        largest.append(size[0] * size[1])
        return new(mode, size, *more)

    monkeypatch.setattr(PIL.Image, "new", measured)
    resized = resize_padded(new("RGB", shape, "red"), (0, 0, 0), 384, RESAMPLE["bicubic"])
    assert resized.size == (384, 384)
    assert max(largest) <= 100_000_000


@pytest.mark.parametrize("shape", [(1_000_000, 1), (1, 1_000_000), (1, 40_000), (100_000_000, 1)], ids=str)
def test_pictures_that_are_too_narrow_are_refused(shape):
    with pytest.raises(MediaError, match="too narrow to be padded"):
        resize_padded(PIL.Image.new("RGB", shape), (0, 0, 0), 384, RESAMPLE["bicubic"])
