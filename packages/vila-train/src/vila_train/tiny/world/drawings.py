"""Descriptions to draw, for models that draw."""

import random

from vila_train.tiny.world.captions import describe_scattered, describe_things, sentence
from vila_train.tiny.world.combinations import Split
from vila_train.tiny.world.scenes import Sample

REQUESTS = ("{}", "{}", "draw {}", "a picture of {}")


def draw_things(rng: random.Random, split: Split) -> Sample:
    """Draw up to four things at the positions that the description states."""
    scene, text, name = describe_things(rng, split, most=4)
    request = sentence(rng.choice(REQUESTS).format(text))
    count = len(scene.things)
    return Sample("draw", f"{count} thing{'s'[: count > 1]}", (request,), "", name, drawn=scene)


def draw_anywhere(rng: random.Random, split: Split) -> Sample:
    """Draw up to six things, anywhere."""
    scene, text, name = describe_scattered(rng, split)
    return Sample("draw", "anywhere", (sentence(rng.choice(REQUESTS).format(text)),), "", name, drawn=scene)


def draw_nothing(rng: random.Random, split: Split) -> Sample:
    """Draw without a description, which guidance compares with."""
    scene, _, name = describe_things(rng, split, most=4)
    return Sample("draw", "nothing", (), "", name, drawn=scene)
