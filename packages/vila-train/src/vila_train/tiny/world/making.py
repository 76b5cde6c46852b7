"""Shared by the tasks: random colors, things, places, and objects that a split allows."""

import math
import random
from collections.abc import Callable, Sequence

from vila_train.tiny.world.combinations import COLORS, Pair, Rgb, Split, objects_of, visible_objects
from vila_train.tiny.world.scenes import CANVAS, Thing

UNNAMED = "other"
"""The color of things in a color without a name."""
FROM_NAMED, FROM_BACKGROUND = 80.0, 120.0
"""Distances in RGB that such a color keeps. Shades are up to 25 away from their color."""
Place = tuple[float, float, float]
"""x, y and radius."""


def background(rng: random.Random) -> Rgb:
    """Return a random light color."""
    return (rng.randint(222, 255), rng.randint(222, 255), rng.randint(222, 255))


def shade(rng: random.Random, color: str) -> Rgb:
    """Return a random shade of the named color."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-14, 14))) for channel in COLORS[color])
    return (red, green, blue)


def unnamed(rng: random.Random) -> Rgb:
    """Return a random color that is far from all named ones and from every background."""
    while True:
        color = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        is_free = all(math.dist(color, named) > FROM_NAMED for named in COLORS.values())
        if is_free and math.dist(color, (238, 238, 238)) > FROM_BACKGROUND:
            return color


def thing(rng: random.Random, pair: Pair, place: Place) -> Thing:
    """Return an object with the color and shape of `pair` at `place`."""
    return Thing(*pair, shade(rng, pair[0]), *place)


def subject(rng: random.Random, split: Split) -> Pair:
    """Return an object that a question of `split` may be about."""
    return rng.choice(objects_of(split))


def others(
    rng: random.Random, split: Split, count: int, taken: Sequence[Pair], *, distinct: str = "pair"
) -> list[Pair]:
    """Return `count` more objects that differ from `taken` and from each other.

    `distinct` is how they differ: in "color", in "shape", in "both", or in at least one of them ("pair").
    """

    def clash(a: Pair, b: Pair) -> bool:
        same_color, same_shape = a[0] == b[0], a[1] == b[1]
        return {
            "pair": same_color and same_shape,
            "color": same_color,
            "shape": same_shape,
            "both": same_color or same_shape,
        }[distinct]

    chosen = list(taken)
    while len(chosen) < len(taken) + count:
        candidate = rng.choice(visible_objects(split))
        if not any(clash(candidate, other) for other in chosen):
            chosen.append(candidate)
    return chosen[len(taken) :]


def scatter(
    rng: random.Random, radii: Sequence[float], accept: Callable[[list[Place]], bool] = lambda places: True
) -> list[Place]:
    """Return non-overlapping places inside the canvas, one per radius, for which `accept` is true."""
    while True:
        places: list[Place] = []
        for radius in radii:
            for _ in range(40):
                x, y = rng.uniform(radius + 3, CANVAS - radius - 3), rng.uniform(radius + 3, CANVAS - radius - 3)
                if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 4) ** 2 for a, b, r in places):
                    places.append((x, y, radius))
                    break
        if len(places) == len(radii) and accept(places):
            return places


def in_cell(rng: random.Random, cell: int) -> Place:
    """Return a place well inside one of the nine cells of the picture."""
    side = CANVAS / 3
    return (
        (cell % 3 + 0.5) * side + rng.uniform(-9, 9),
        (cell // 3 + 0.5) * side + rng.uniform(-9, 9),
        rng.uniform(17, 25),
    )


def with_article(name: str) -> str:
    """Return `name` with its article, such as "an orange star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
