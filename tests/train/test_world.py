"""The drawn world: deterministic, with disjoint splits and correct answers."""

import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from vila_train.tiny.world import APART, CAPTIONS, DRAWINGS, TASKS, TINY_U_CAPTIONS, make_sample
from vila_train.tiny.world.combinations import (
    COLORS,
    SHAPES,
    SPLITS,
    Split,
    bar_split,
    object_split,
    objects_of,
    text_split,
    words_of,
)
from vila_train.tiny.world.drawing import CHART_BOTTOM, bar_boxes, draw
from vila_train.tiny.world.scenes import CANVAS
from vila_train.tiny.world.sheet import Entry, contact_sheet

sys.path.insert(0, str(Path(__file__).parent))
import world_oracle

SOURCES = [*TASKS, *CAPTIONS]
ALL_SOURCES = [*SOURCES, *DRAWINGS, *TINY_U_CAPTIONS, *APART]
OF_UNNAMED = ("caption_shapes", "place_of_shape")
OF_COMBINATIONS = [source for source in ALL_SOURCES if source not in OF_UNNAMED]


def split_of(combination: str) -> Split:
    """Return the split of a combination."""
    kind, *rest = combination.split(" ")
    if kind == "bar":
        return bar_split(rest[0], int(rest[1]))
    return text_split(rest[0]) if kind == "text" else object_split(kind, rest[0])


@pytest.mark.parametrize("source", ALL_SOURCES)
def test_samples_are_deterministic(source: str) -> None:
    first, again, other = (
        make_sample("train", source, 5),
        make_sample("train", source, 5),
        make_sample("train", source, 6),
    )
    assert first == again
    assert first != other
    assert all(draw(a).tobytes() == draw(b).tobytes() for a, b in zip(first.scenes, again.scenes, strict=True))


def test_the_world_has_not_changed_since_the_embedded_model_was_trained() -> None:
    """After an intended change to the world, train the model again and record the new checksum."""
    text = "\n".join(
        f"{s.question}|{s.answer}|{s.scenes[0].background}"
        for t in SOURCES
        for p in SPLITS
        for s in [make_sample(p, t, 11)]
    )
    assert zlib.crc32(text.encode()) == WORLD_CHECKSUM


WORLD_CHECKSUM = 2408726728


@pytest.mark.parametrize("source", OF_COMBINATIONS)
def test_training_never_shows_held_out_combinations(source: str) -> None:
    for index in range(200):
        sample = make_sample("train", source, index)
        assert {split_of(combination) for combination in sample.combinations} == {"train"}, sample


@pytest.mark.parametrize("source", OF_UNNAMED)
def test_shapes_in_other_colors_are_no_combinations(source: str) -> None:
    for index in range(100):
        (scene,) = make_sample("train", source, index).scenes
        for thing in scene.things:
            nearest = min(math.dist(thing.rgb, color) for color in COLORS.values())
            assert nearest > 80  # a shade is at most 25 away
            assert math.dist(thing.rgb, scene.background) > 90


def test_held_out_pairs_can_be_a_hint_or_not() -> None:
    def is_hinted(source: str, index: int) -> bool:
        sample = make_sample("train", source, index)
        (scene,) = sample.scenes
        color, shape = sample.subject.split()
        rest = [thing for thing in scene.things if thing.name != sample.subject]
        swapped = [(one.color, shape) if sample.kind == "color" else (color, one.shape) for one in rest]
        assert world_oracle.answer(sample) == sample.answer
        return any(object_split(*pair) != "train" for pair in swapped)

    assert any(is_hinted("attribute", index) for index in range(100))
    assert not any(is_hinted("attribute_without_hints", index) for index in range(400))


def test_places_of_shapes() -> None:
    kinds: set[str] = set()
    for index in range(200):
        sample = make_sample("train", "place_of_shape", index)
        (scene,) = sample.scenes
        (asked,) = [thing for thing in scene.things if thing.shape == sample.subject]
        told = {asked.shape, world_oracle.cell(asked)}
        assert sample.answer in told
        assert any(f"the {one}" in sample.question for one in told - {sample.answer})
        kinds.add(sample.kind)
    assert kinds == {"where", "what"}


@pytest.mark.parametrize("source", OF_COMBINATIONS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_questions_outside_training_are_about_combinations_held_out_for_their_split(split: Split, source: str) -> None:
    for index in range(100):
        sample = make_sample(split, source, index)
        assert sample.subject in sample.combinations
        assert split_of(sample.subject) == split
        assert {split_of(combination) for combination in sample.combinations} <= {"train", split}


@pytest.mark.parametrize("split", SPLITS)
def test_descriptions_to_draw_say_what_the_picture_shows(split: Split) -> None:
    for index in range(60):
        sample = make_sample(split, "draw_things", index)
        assert sample.drawn is not None
        said = world_oracle.mentioned(sample.question)
        assert said == world_oracle.names(sample.drawn)
        for thing in sample.drawn.things:
            assert f"{thing.name} ({world_oracle.cell(thing)})" in sample.question
        anywhere = make_sample(split, "draw_anywhere", index)
        assert anywhere.drawn is not None
        assert world_oracle.mentioned(anywhere.question) == world_oracle.names(anywhere.drawn)
        assert "(" not in anywhere.question
        assert make_sample(split, "draw_nothing", index).question == ""


def test_training_shows_every_part_of_the_held_out_combinations() -> None:
    for split in SPLITS:
        assert {color for color, _ in objects_of(split)} == set(COLORS)
        assert {shape for _, shape in objects_of(split)} == set(SHAPES)
    assert len(objects_of("train")) == 48
    assert {letter for word in words_of("train") for letter in word} == {
        letter for word in words_of("test") for letter in word
    }
    assert not set(words_of("train")) & set(words_of("test"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right(task: str, split: Split) -> None:
    kinds: set[str] = set()
    for index in range(120):
        sample = make_sample(split, task, index)
        assert sample.answer == world_oracle.answer(sample), sample
        kinds.add(sample.kind)
    assert len(kinds) == {
        "attribute": 3,
        "count": 2,
        "position": 2,
        "relation": 2,
        "size": 2,
        "word": 2,
        "number": 1,
        "chart": 3,
    }.get(task, {"pair": 3, "in_context": 4, "motion": 2, "appearance": 4}.get(task)), "every kind of question occurs"


@pytest.mark.parametrize(
    "task", ["attribute", "count", "position", "relation", "size", "pair", "in_context", "motion", "appearance"]
)
def test_things_are_drawn_at_their_positions(task: str) -> None:
    for index in range(20):
        for scene in make_sample("test", task, index).scenes:
            pixels = np.asarray(draw(scene)).astype(int)
            for thing in scene.things:
                rows, columns = np.nonzero((pixels == thing.rgb).all(-1))
                near = (abs(columns - thing.x) <= thing.radius + 1) & (abs(rows - thing.y) <= thing.radius + 1)
                assert near.sum() > 0.4 * thing.radius**2, thing
            background = (pixels == scene.background).all(-1).mean()
            assert background > 0.4


@pytest.mark.parametrize("size", [CANVAS, 384])
def test_bar_heights_match_their_values(size: int) -> None:
    for index in range(20):
        (scene,) = make_sample("test", "chart", index).scenes
        pixels = np.asarray(draw(scene, size)).astype(int)
        scale = size / CANVAS
        for bar, (left, right) in zip(scene.bars, bar_boxes(len(scene.bars)), strict=True):
            column = pixels[: int(CHART_BOTTOM * scale), int((left + right) / 2 * scale)]
            height = (column == bar.rgb).all(-1).sum() / scale
            assert height / 18 == pytest.approx(bar.value, abs=0.15), "18 canvas units per value"


def test_texts_fit_inside_the_picture() -> None:
    for index in range(40):
        (scene,) = make_sample("train", "word", index).scenes
        pixels = np.asarray(draw(scene)).astype(int)
        ink = (pixels != scene.background).any(-1)
        assert ink.any()
        assert not ink[[0, -1]].any()
        assert not ink[:, [0, -1]].any()


def test_the_contact_sheet_marks_wrong_replies_red() -> None:
    sample = make_sample("test", "number", 0)
    plain, right, wrong = (np.asarray(contact_sheet([Entry(sample, reply)])) for reply in (None, sample.answer, "7"))
    assert plain.shape == right.shape == wrong.shape
    red = [((image[..., 0] > 150) & (image[..., 1] < 90)).sum() for image in (right, wrong)]
    assert red[0] < red[1]
