"""What the drawn world is made of, and which combinations of it each split may show.

The training split never shows, in any picture or answer,

* an object whose colour and shape are held out (each colour keeps 6 of 8 shapes, each shape 6 of 8 colours),
* a bar whose colour and value are held out (each colour keeps 7 of 9 values, each value most colours),
* a word or number whose spelling is held out (by its checksum).

What a validation or test question asks about is always held out for that very split, so it can only be answered by
putting together parts that were learned apart.
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
"""Values of bars."""


def as_split(name: str) -> Split:
    """Return the split called `name`. Raises `ConfigError` if there is none."""
    for split in SPLITS:
        if name == split:
            return split
    raise ConfigError(unknown_name("split", name, SPLITS))


def object_split(color: str, shape: str) -> Split:
    """Return the split that owns the objects of this colour and shape: one diagonal of the colour-shape table each."""
    diagonal = (SHAPES.index(shape) - list(COLORS).index(color)) % len(SHAPES)
    return "test" if diagonal == 5 else "validation" if diagonal == 2 else "train"


def bar_split(color: str, value: int) -> Split:
    """Return the split that owns the bars of this colour and value, likewise by diagonals."""
    diagonal = (value - list(COLORS).index(color)) % len(VALUES)
    return "test" if diagonal == 5 else "validation" if diagonal == 2 else "train"


def text_split(text: str) -> Split:
    """Return the split that owns this word or number: 70 % train, 10 % validation, 20 % test."""
    bucket = zlib.crc32(text.encode()) % 10
    return "test" if bucket >= 8 else "validation" if bucket == 7 else "train"


Pair = tuple[str, str]
"""A colour and a shape (in this order)."""


@cache
def objects_of(split: Split) -> tuple[Pair, ...]:
    """Return the colour-shape pairs that `split` owns: 48 train, 8 validation, 8 test."""
    return tuple((color, shape) for color in COLORS for shape in SHAPES if object_split(color, shape) == split)


@cache
def visible_objects(split: Split) -> tuple[Pair, ...]:
    """Return the pairs that pictures of `split` may show: its own and those of training."""
    return objects_of("train") if split == "train" else (*objects_of("train"), *objects_of(split))


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """Return the real words, in capitals, that `split` owns."""
    words = files("vila_train.tiny.world").joinpath("words.txt").read_text(encoding="ascii").upper().split()
    return tuple(word for word in words if text_split(word) == split)


def letters(rng: random.Random, split: Split) -> str:
    """Return three to five capital letters of `split`, mostly no word at all."""
    while text_split(text := "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(3, 5)))) != split:
        pass
    return text


def digits(rng: random.Random, split: Split) -> str:
    """Return a number of `split` with two to four digits."""
    while text_split(text := str(rng.randrange(10 ** (length := rng.randint(1, 3)), 10 ** (length + 1)))) != split:
        pass
    return text
