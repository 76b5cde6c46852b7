"""Reading drawn pictures back: things, their colors, shapes and positions."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vila_train.tiny.world import make_sample
from vila_train.tiny.world.combinations import COLORS, SHAPES, Split
from vila_train.tiny.world.drawing import draw
from vila_train.tiny.world.reading import UNKNOWN, Agreement, Seen, compare, read_things
from vila_train.tiny.world.scenes import Scene, Thing


def drawn(split: Split, count: int) -> list[Scene]:
    return [scene for index in range(count) for scene in make_sample(split, "caption_things", index).scenes]


def share_right(
    scenes: list[Scene], size: int, change: Callable[[Image.Image, int], Image.Image] | None = None
) -> float:
    found: list[Agreement] = []
    for number, scene in enumerate(scenes):
        picture = draw(scene, size)
        found.append(compare(scene.things, read_things(picture if change is None else change(picture, number))))
    return sum(one.right for one in found) / sum(one.attributes for one in found)


def generated_like(picture: Image.Image, seed: int) -> Image.Image:
    """Blur a picture and add noise, as an image decoder may."""
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(picture.width / 80)), dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, 8, blurred.shape)
    return Image.fromarray((blurred + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("size", "least"), [(64, 0.999), (96, 1.0), (192, 1.0)])
def test_every_attribute_of_a_drawn_picture_is_read(size: int, least: float) -> None:
    assert share_right([*drawn("train", 60), *drawn("test", 60)], size) >= least


def test_blur_and_noise_are_tolerated() -> None:
    assert share_right(drawn("test", 100), 64, generated_like) >= 0.985


@pytest.mark.parametrize("blur", [0.5, 1.0])
def test_soft_edges_change_nothing(blur: float) -> None:
    """Blur alone, of up to two pixels at an edge, as a decoder of few codes leaves."""
    change = lambda picture, _: picture.filter(ImageFilter.GaussianBlur(blur))  # noqa: E731
    assert share_right(drawn("test", 60), 64, change) >= 0.98


def test_what_is_no_shape_of_the_world_is_unknown() -> None:
    draw_smear = np.random.default_rng(1)
    right = 0
    for _ in range(40):
        picture = Image.new("RGB", (192, 192), (240, 240, 240))
        corners = [tuple(draw_smear.uniform(60, 130, 2)) for _ in range(5)]
        ImageDraw.Draw(picture).polygon(corners, COLORS["red"])
        right += sum(seen.shape != UNKNOWN for seen in read_things(picture.resize((64, 64))))
    assert right <= 8, "some random polygons are almost triangles"


def test_a_color_that_is_far_from_every_name_is_unknown() -> None:
    thing = Thing("red", "circle", (120, 120, 0), 96, 96, 30)
    assert read_things(draw(Scene((240, 240, 240), (thing,)), 64)) == [Seen(UNKNOWN, "circle", 4)]


def test_a_faint_ghost_and_a_speck_are_no_things() -> None:
    scene = Scene((240, 240, 240), (Thing("red", "circle", (215, 215, 215), 60, 60, 25),))
    pixels = np.array(draw(scene, 64))
    pixels[40:43, 40:43] = COLORS["blue"]
    assert read_things(pixels) == []


def test_a_thing_that_is_drawn_twice_or_broken_in_two_counts_as_two() -> None:
    thing = Thing("red", "square", COLORS["red"], 96, 96, 30)
    pixels = np.array(draw(Scene((240, 240, 240), (thing,)), 64))
    pixels[:, 31:34] = 240
    assert compare([thing], read_things(pixels)).has_right_count is False
    assert compare([thing], read_things(pixels)).things == 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_every_combination(color: str, shape: str) -> None:
    thing = Thing(color, shape, COLORS[color], 100, 40, 20)
    assert read_things(draw(Scene((240, 240, 240), (thing,)), 64)) == [Seen(color, shape, 1)]


def test_an_empty_picture_has_no_things() -> None:
    noise = np.random.default_rng(0).integers(230, 250, (64, 64, 3), dtype=np.uint8)
    assert read_things(noise) == []


def test_a_picture_full_of_noise_ends() -> None:
    """What a model draws that has learned nothing."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert len(read_things(noise)) <= 9


def things(*names: str) -> list[Thing]:
    centers = random.Random(0).sample(range(9), len(names))
    return [
        Thing(*name.split(" "), (0, 0, 0), (cell % 3 + 0.5) * 64, (cell // 3 + 0.5) * 64, 20)  # pyright: ignore[reportArgumentType]
        for name, cell in zip(names, centers, strict=True)
    ]


def test_what_is_missing_and_what_nobody_asked_for_count_as_wrong() -> None:
    wanted = things("red circle", "blue star")
    seen = [Seen(thing.color, thing.shape, thing.cell) for thing in wanted]
    assert compare(wanted, seen) == Agreement(2, 2, 2, 2, True)
    assert compare(wanted, seen[::-1]) == Agreement(2, 2, 2, 2, True)
    assert compare(wanted, seen[:1]) == Agreement(1, 1, 1, 2, False)
    assert compare(wanted[:1], seen) == Agreement(1, 1, 1, 2, False)
    assert compare(wanted, []) == Agreement(0, 0, 0, 2, False)
    assert compare([], []).attributes == 0


def test_things_are_paired_such_that_most_attributes_agree() -> None:
    wanted = things("red circle", "red star")
    swapped = [Seen("red", "star", wanted[0].cell), Seen("red", "circle", wanted[1].cell)]
    assert compare(wanted, swapped).right == 4
