"""Questions about shapes in colors without names, which teach shapes apart from colors.

They are for vila-tiny-u, whose tower is frozen when questions are learned. It then learns pairs: asked for the color of
one of several things, it names that of a thing whose pair it has seen, if the pair of the right one is held out.
"""

import random

from vila_train.tiny.world.combinations import SHAPES, Split
from vila_train.tiny.world.making import UNNAMED, background, in_cell, unnamed
from vila_train.tiny.world.scenes import POSITIONS, Sample, Scene, Thing


def place_of_shape(rng: random.Random, split: Split) -> Sample:
    """Ask in which of nine cells a shape is, or which shape is in a cell. All colors are without names.

    It shows no pair of color and shape, so none that is held out: all splits are alike.
    """
    shapes = rng.sample(SHAPES, rng.randint(1, 4))
    cells = rng.sample(range(9), len(shapes))
    things = [
        Thing(UNNAMED, shape, unnamed(rng), *in_cell(rng, cell)) for shape, cell in zip(shapes, cells, strict=True)
    ]
    scene = Scene(background(rng), tuple(rng.sample(things, len(things))))
    shape, where = shapes[0], POSITIONS[cells[0]]
    if rng.random() < 0.6:
        question = rng.choice(("Where is the {}?", "In which part of the picture is the {}?", "Locate the {}."))
        return Sample("shape", "where", (scene, question.format(shape)), where, shape)
    question = rng.choice(("What shape is at the {}?", "Which shape is at the {}?", "Name the shape at the {}."))
    return Sample("shape", "what", (scene, question.format(where)), shape, shape)
