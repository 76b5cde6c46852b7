"""Tasks about one picture. Each function makes a random sample of `split`."""

import random

from vila_train.tiny.world.combinations import (
    COLORS,
    VALUES,
    Pair,
    Rgb,
    Split,
    bar_split,
    digits,
    letters,
    object_split,
    words_of,
)
from vila_train.tiny.world.drawing import text_width
from vila_train.tiny.world.making import Place, background, in_cell, others, scatter, shade, subject, thing
from vila_train.tiny.world.scenes import CANVAS, POSITIONS, Bar, Sample, Scene, Text, Thing


def _scene(rng: random.Random, pairs: list[Pair], places: list[Place]) -> Scene:
    things = [thing(rng, pair, place) for pair, place in zip(pairs, places, strict=True)]
    return Scene(background(rng), tuple(rng.sample(things, len(things))))


def attribute(rng: random.Random, split: Split, *, hints: bool = True) -> Sample:
    """Ask for the color of the only thing with a shape, the shape of the only thing with a color, or both.

    Args:
        rng: random numbers.
        split: of the sample.
        hints: if false, knowing which pairs training shows is no help: it shows the shape that is asked about in the
            color of each other thing, or the color in its shape.
    """
    color, shape = pair = subject(rng, split)
    kind = rng.choice(("color", "shape", "both"))
    count = 0 if kind == "both" else rng.randint(0, 3)
    extra = others(rng, split, count, [pair], distinct="both")
    while not hints and any(object_split(*_swapped(kind, pair, other)) != "train" for other in extra):
        extra = others(rng, split, count, [pair], distinct="both")
    pairs = [pair, *extra]
    scene = _scene(rng, pairs, scatter(rng, [rng.uniform(18, 38) for _ in pairs]))
    question, answer = {
        "color": (
            rng.choice(("What color is the {}?", "Which color does the {} have?", "The {} is what color?")).format(
                shape
            ),
            color,
        ),
        "shape": (
            rng.choice(
                ("What shape is the {} object?", "What is the shape of the {} thing?", "The {} object is what?")
            ).format(color),
            shape,
        ),
        "both": (rng.choice(("What is this?", "Name the object.", "Which object is shown?")), f"{color} {shape}"),
    }[kind]
    return Sample("attribute", kind, (scene, question), answer, f"{color} {shape}")


def _swapped(kind: str, asked: Pair, other: Pair) -> Pair:
    """Return the pair that the thing asked about would be with the color, or the shape, of another."""
    return (other[0], asked[1]) if kind == "color" else (asked[0], other[1])


def count(rng: random.Random, split: Split) -> Sample:
    """Ask how many things there are: with one color and shape, or in total."""
    pair = subject(rng, split)
    kind = rng.choice(("some", "some", "all"))
    wanted = rng.randint(1, 6)
    if kind == "some":
        similar = [p for p in others(rng, split, 6, [pair]) if p[0] == pair[0] or p[1] == pair[1]]
        pairs = [pair] * wanted + rng.choices(similar + others(rng, split, 2, [pair]), k=rng.randint(0, 3))
    else:
        pairs = [pair, *others(rng, split, wanted - 1, [pair])]
    scene = _scene(rng, pairs, scatter(rng, [rng.uniform(15, 22) for _ in pairs]))
    name = f"{pair[0]} {pair[1]}"
    plural = f"{name}es" if pair[1] == "cross" else f"{name}s"
    phrases = {
        "some": ("How many {} are there?", "Count the {}.", "How many {} do you see?"),
        "all": ("How many objects are there?", "Count the objects.", "How many objects do you see?"),
    }[kind]
    return Sample("count", kind, (scene, rng.choice(phrases).format(plural)), str(wanted), name)


def position(rng: random.Random, split: Split) -> Sample:
    """Ask in which of nine cells a thing is, or what is in a cell."""
    pair = subject(rng, split)
    pairs = [pair, *others(rng, split, rng.randint(0, 3), [pair])]
    cells = rng.sample(range(9), len(pairs))
    scene = _scene(rng, pairs, [in_cell(rng, cell) for cell in cells])
    name, where = f"{pair[0]} {pair[1]}", POSITIONS[cells[0]]
    if kind_is_where := rng.random() < 0.6:
        question, answer = (
            rng.choice(("Where is the {}?", "In which part of the picture is the {}?", "Locate the {}.")).format(name),
            where,
        )
    else:
        question, answer = (
            rng.choice(("What is at the {}?", "Which object is at the {}?", "Name the object at the {}.")).format(
                where
            ),
            name,
        )
    return Sample("position", "where" if kind_is_where else "what", (scene, question), answer, name)


RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""For each relation, the sign of (dx, dy) from the second thing to the first."""


def holds(relation: str, first: Thing | Place, second: Thing | Place) -> bool:
    """Return whether `first` is clearly `relation` to `second`."""
    return _along(relation, first, second) > 0


def _along(relation: str, first: Thing | Place, second: Thing | Place) -> float:
    (x1, y1), (x2, y2) = ((p.x, p.y) if isinstance(p, Thing) else p[:2] for p in (first, second))
    sign_x, sign_y = RELATIONS[relation]
    return sign_x * (x1 - x2) + sign_y * (y1 - y2)


def relation(rng: random.Random, split: Split) -> Sample:
    """Ask whether one thing is left of, right of, above or below another, or which thing is."""
    pair = subject(rng, split)
    pairs = [pair, *others(rng, split, rng.randint(1, 2), [pair])]
    asked = rng.choice(tuple(RELATIONS))
    kind = rng.choice(("whether", "which"))
    wanted = kind == "which" or rng.random() < 0.5
    margin = 34

    def clear(places: list[Place]) -> bool:
        distances = [_along(asked, place, places[1]) for place in (places[0], *places[2:])]
        rest = distances[1:] if kind == "which" else []
        return (distances[0] > margin if wanted else distances[0] < -margin) and all(d < -margin for d in rest)

    scene = _scene(rng, pairs, scatter(rng, [rng.uniform(16, 28) for _ in pairs], clear))
    first, second = (f"{color} {shape}" for color, shape in pairs[:2])
    if kind == "whether":
        question, answer = (
            rng.choice(("Is the {} {} the {}?", "Would you say the {} is {} the {}?")).format(first, asked, second),
            "yes" if wanted else "no",
        )
    else:
        question, answer = rng.choice(("What is {} the {}?", "Which object is {} the {}?")).format(asked, second), first
    return Sample("relation", kind, (scene, question), answer, first)


def size(rng: random.Random, split: Split) -> Sample:
    """Ask which of two or three things is the largest or the smallest."""
    pair = subject(rng, split)
    pairs = [pair, *others(rng, split, rng.randint(1, 2), [pair])]
    kind = rng.choice(("largest", "smallest"))
    largest = rng.uniform(33, 42)
    radii = [largest, *(largest * rng.uniform(0.45, 0.7) for _ in pairs[1:])]
    if kind == "smallest":
        radii = [rng.uniform(13, 18), *(rng.uniform(25, 38) for _ in pairs[1:])]
    scene = _scene(rng, pairs, scatter(rng, radii))
    comparative = {"largest": "biggest", "smallest": "tiniest"}[kind]
    question = rng.choice(
        (f"Which object is the {kind}?", f"What is the {kind} object?", f"Which object is the {comparative}?")
    )
    answer = f"{pair[0]} {pair[1]}"
    return Sample("size", kind, (scene, question), answer, answer)


TEXT_COLORS = ("red", "green", "blue", "purple", "black")


def text_scene(rng: random.Random, text: str) -> Scene:
    """Return a picture of `text`."""
    font_size = rng.randint(40, 62)
    while text_width(text, font_size) > CANVAS - 16:
        font_size -= 2
    half = text_width(text, font_size) / 2
    x, y = rng.uniform(half + 6, CANVAS - half - 6), rng.uniform(font_size / 2 + 4, CANVAS - font_size / 2 - 4)
    return Scene(background(rng), text=Text(text, shade(rng, rng.choice(TEXT_COLORS)), x, y, font_size))


def word(rng: random.Random, split: Split) -> Sample:
    """Ask for a word in capitals; half are real words, half random letters."""
    kind = rng.choice(("word", "letters"))
    text = rng.choice(words_of(split)) if kind == "word" else letters(rng, split)
    question = rng.choice(("What word is written?", "Read the word.", "What does it say?", "Which word do you see?"))
    return Sample("word", kind, (text_scene(rng, text), question), text, f"text {text}")


def number(rng: random.Random, split: Split) -> Sample:
    """Ask for a number of two to four digits."""
    text = digits(rng, split)
    question = rng.choice(
        ("What number is shown?", "Read the number.", "Which number do you see?", "What is the number?")
    )
    return Sample("number", "digits", (text_scene(rng, text), question), text, f"text {text}")


def bars_scene(rng: random.Random, split: Split, wanted: Bar, rest: list[int]) -> Scene:
    """Return a chart with the bar `wanted` and one bar in another color per value of `rest`."""
    bars, colors = [wanted], [color for color in COLORS if color != wanted.color]
    for value in rest:
        color = rng.choice([c for c in colors if bar_split(c, value) in ("train", split)])
        colors.remove(color)
        bars.append(Bar(color, shade(rng, color), value))
    white: Rgb = (255, 255, 255)
    return Scene(white, bars=tuple(rng.sample(bars, len(bars))))


def own_bar(rng: random.Random, split: Split, values: range = VALUES) -> Bar:
    """Return a bar that belongs to `split`."""
    color, value = rng.choice([(c, v) for c in COLORS for v in values if bar_split(c, v) == split])
    return Bar(color, shade(rng, color), value)


def chart(rng: random.Random, split: Split) -> Sample:
    """Ask for the value of a bar, or which bar is the highest or the lowest."""
    kind = rng.choice(("value", "value", "highest", "lowest"))
    others_count = rng.randint(2, 4)
    bar = own_bar(rng, split, {"value": VALUES, "highest": range(3, 10), "lowest": range(1, 8)}[kind])
    allowed = {"value": VALUES, "highest": range(1, bar.value), "lowest": range(bar.value + 1, 10)}[kind]
    scene = bars_scene(rng, split, bar, rng.choices(allowed, k=others_count))
    if kind == "value":
        question, answer = (
            rng.choice(("What is the value of the {} bar?", "How high is the {} bar?", "Read the {} bar.")).format(
                bar.color
            ),
            str(bar.value),
        )
    else:
        question, answer = rng.choice(("Which bar is the {}?", "What color is the {} bar?")).format(kind), bar.color
    return Sample("chart", kind, (scene, question), answer, f"bar {bar.color} {bar.value}")
