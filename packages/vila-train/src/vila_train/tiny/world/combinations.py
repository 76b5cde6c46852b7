"""The colors, shapes, values and words of the drawn world, and which combinations of them each split may show.

The training split never shows, in any picture or answer,

* an object with a held-out pair of color and shape (each color keeps 6 of 8 shapes, each shape 6 of 8 colors),
* a bar with a held-out pair of color and value (each color keeps 7 of 9 values, each value most colors),
* a held-out word or number (chosen by checksum).

Every validation or test question is about a combination held out for that split, so the model must combine parts that
it learned separately.
"""

import random
import zlib
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from vila_core.errors import ConfigError, unknown_name

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = get_args(Split)

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 38, 40),
    "orange": (247, 143, 30),
    "yellow": (240, 214, 40),
    "green": (46, 160, 67),
    "blue": (42, 92, 214),
    "purple": (134, 58, 178),
    "pink": (247, 150, 196),
    "black": (40, 40, 44),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon")
VALUES = range(1, 10)
"""Values of the bars in a chart."""


def as_split(name: str) -> Split:
    """Return `name` as a split. Raises `ConfigError` for an unknown name."""
    for split in SPLITS:
        if name == split:
            return split
    raise ConfigError(unknown_name("split", name, SPLITS))


def object_split(color: str, shape: str) -> Split:
    """Return the split of the objects with this color and shape. Held-out splits own one diagonal of the table each."""
    diagonal = (SHAPES.index(shape) - list(COLORS).index(color)) % len(SHAPES)
    return "test" if diagonal == 5 else "validation" if diagonal == 2 else "train"


def bar_split(color: str, value: int) -> Split:
    """Return the split of the bars with this color and value, also by diagonals."""
    diagonal = (value - list(COLORS).index(color)) % len(VALUES)
    return "test" if diagonal == 5 else "validation" if diagonal == 2 else "train"


def text_split(text: str) -> Split:
    """Return the split of this word or number: 70 % train, 10 % validation, 20 % test."""
    bucket = zlib.crc32(text.encode()) % 10
    return "test" if bucket >= 8 else "validation" if bucket == 7 else "train"


Pair = tuple[str, str]
"""A color and a shape, in this order."""


@cache
def objects_of(split: Split) -> tuple[Pair, ...]:
    """Return the color-shape pairs of `split`: 48 train, 8 validation, 8 test."""
    return tuple((color, shape) for color in COLORS for shape in SHAPES if object_split(color, shape) == split)


@cache
def visible_objects(split: Split) -> tuple[Pair, ...]:
    """Return the pairs that pictures of `split` may show: its own and those of the training split."""
    return objects_of("train") if split == "train" else (*objects_of("train"), *objects_of(split))


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """Return the real words of `split`, in capitals."""
    words = files("vila_train.tiny.world").joinpath("words.txt").read_text(encoding="ascii").upper().split()
    return tuple(word for word in words if text_split(word) == split)


def letters(rng: random.Random, split: Split) -> str:
    """Return three to five random capital letters that belong to `split`."""
    while text_split(text := "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(3, 5)))) != split:
        pass
    return text


def digits(rng: random.Random, split: Split) -> str:
    """Return a number with two to four digits that belongs to `split`."""
    while text_split(text := str(rng.randrange(10 ** (length := rng.randint(1, 3)), 10 ** (length + 1)))) != split:
        pass
    return text
