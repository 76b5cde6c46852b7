"""The drawn world: generated pictures and videos, with questions that have exactly one right answer.

`make_sample(split, task, index)` is deterministic: the same arguments give the same sample on every machine.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from vila_train.tiny.world import apart, captions, drawings, several, single, videos
from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.scenes import Sample

TASKS: dict[str, Callable[[random.Random, Split], Sample]] = {
    "attribute": single.attribute,
    "count": single.count,
    "position": single.position,
    "relation": single.relation,
    "size": single.size,
    "word": single.word,
    "number": single.number,
    "chart": single.chart,
    "pair": several.pair,
    "in_context": several.in_context,
    "motion": videos.motion,
    "appearance": videos.appearance,
}
"""The tasks, scored by exact match. The question comes after the pictures."""


def _question_first(make: Callable[[random.Random, Split], Sample], rng: random.Random, split: Split) -> Sample:
    sample = make(rng, split)
    *media, question = sample.prompt
    assert isinstance(question, str)
    return replace(sample, task=f"{sample.task}_asked", prompt=(question, *media))


ASKED_FIRST: dict[str, Callable[[random.Random, Split], Sample]] = {
    f"{name}_asked": partial(_question_first, make) for name, make in TASKS.items() if name != "in_context"
}
"""The same tasks with the question before the pictures. (The order of in-context examples is fixed.)"""

TESTS = (*TASKS, *ASKED_FIRST)
"""Names of all tests."""

CAPTIONS: dict[str, Callable[[random.Random, Split], Sample]] = {
    "caption_things": captions.caption_things,
    "caption_text": captions.caption_text,
    "caption_chart": captions.caption_chart,
    "caption_two": partial(captions.caption_pictures, num_pictures=2),
    "caption_four": partial(captions.caption_pictures, num_pictures=4),
    "caption_video": captions.caption_video,
}
"""Descriptions, used only for training."""


DRAWINGS: dict[str, Callable[[random.Random, Split], Sample]] = {
    "draw_things": drawings.draw_things,
    "draw_anywhere": drawings.draw_anywhere,
    "draw_nothing": drawings.draw_nothing,
}
"""Descriptions to draw, for models that draw."""

TINY_U_CAPTIONS: dict[str, Callable[[random.Random, Split], Sample]] = {
    "caption_scattered": captions.caption_scattered,
    "caption_shapes": captions.caption_shapes,
}
"""Descriptions that only vila-tiny-u trains on."""


APART: dict[str, Callable[[random.Random, Split], Sample]] = {
    "attribute_without_hints": partial(single.attribute, hints=False),
    "place_of_shape": apart.place_of_shape,
}
"""Questions that teach colors and shapes apart, used only for training."""


def make_sample(split: Split, task: str, index: int) -> Sample:
    """Return sample `index` of a source: a task, captions or drawings. Raises `KeyError` for an unknown name."""
    make = (TASKS | ASKED_FIRST | CAPTIONS | DRAWINGS | TINY_U_CAPTIONS | APART)[task]
    return make(random.Random(f"drawn world 1/{split}/{task}/{index}"), split)
