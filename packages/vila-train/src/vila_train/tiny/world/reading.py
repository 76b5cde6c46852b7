"""Reads the things in a picture of the drawn world back from its pixels, without a trained detector.

A thing is a connected region that differs from the background. Its color is the nearest named color; its shape is the
one that covers it best when it is drawn with the same area and center of gravity. Of drawn pictures, everything is read
right from 96 pixels on, and 99.9 % of the attributes at 64. Blur and noise, as in a generated picture, do little harm.
What looks like no color or shape of the world is `UNKNOWN`, which is never right: a smear does not count as its nearest
shape.

S image size in pixels
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vila_train.tiny.world.combinations import COLORS, SHAPES
from vila_train.tiny.world.drawing import outline
from vila_train.tiny.world.scenes import POSITIONS, Thing

FAINTEST = 60.0
"""Euclidean distance in RGB from which a pixel differs from the background. The palest color, pink, is 110 away."""
SMALLEST = 0.004
"""Smallest share of the picture that is a thing; a thing as drawn covers at least 0.012."""
FARTHEST = 75.0
"""Largest distance in RGB from a named color. Shades are up to 25 away; blur at 64 pixels makes that 57."""
LEAST_OVERLAP = 0.7
"""Intersection over union with the drawn shape. Drawn shapes have 0.86 or more, blurred ones 0.75, smears below 0.7."""
UNKNOWN = "unknown"
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Seen:
    """A thing that was found in a picture.

    Attributes:
        color, shape: names, or `UNKNOWN`.
        cell: index into `POSITIONS` of the cell that contains the center of its box.
    """

    color: str
    shape: str
    cell: int

    def __str__(self) -> str:
        return f"{self.color} {self.shape} ({POSITIONS[self.cell]})"


@dataclass(frozen=True)
class Agreement:
    """How many attributes of a picture are as wanted.

    Attributes:
        color, shape, position: of things, right.
        things: wanted, or found if these are more: things that nobody asked for count as wrong.
        has_right_count: whether as many were found as wanted.
    """

    color: int
    shape: int
    position: int
    things: int
    has_right_count: bool

    @property
    def right(self) -> int:
        return self.color + self.shape + self.position

    @property
    def attributes(self) -> int:
        """Three of each thing."""
        return 3 * self.things


def compare(wanted: Sequence[Thing], seen: Sequence[Seen]) -> Agreement:
    """Compare the things of a description with those in a picture, paired such that most attributes agree."""
    things = max(len(wanted), len(seen))
    if len(wanted) > len(seen):
        pairings = (zip(order, seen, strict=False) for order in permutations(wanted, len(seen)))
    else:
        pairings = (zip(wanted, order, strict=False) for order in permutations(seen, len(wanted)))
    candidates = [_agreement([*pairing], things, len(wanted) == len(seen)) for pairing in pairings]
    return max(candidates, key=lambda agreement: agreement.right)


def _agreement(pairs: Sequence[tuple[Thing, Seen]], things: int, has_right_count: bool) -> Agreement:
    return Agreement(
        sum(thing.color == seen.color for thing, seen in pairs),
        sum(thing.shape == seen.shape for thing, seen in pairs),
        sum(thing.cell == seen.cell for thing, seen in pairs),
        things,
        has_right_count,
    )


def read_things(picture: Image.Image | NDArray[np.uint8], most: int = 9) -> list[Seen]:
    """Return the things in a picture `[S, S, 3]`, the largest first, at most `most`."""
    pixels = np.asarray(picture, dtype=np.float32)
    background = _background(pixels)
    distance = np.linalg.norm(pixels - background, axis=-1)
    regions = [region for region in _regions(distance > FAINTEST) if region.sum() >= SMALLEST * distance.size]
    regions.sort(key=lambda region: -int(region.sum()))
    return [_read(pixels, background, region) for region in regions[:most]]


def _background(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the median color of the picture's edge."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.median(edge, axis=0)


def _regions(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Yield the connected regions of `mask` `[S, S]`; pixels touch at their sides."""
    left = mask.copy()
    height, width = mask.shape
    for start in np.argwhere(mask):
        y, x = int(start[0]), int(start[1])
        if not left[y, x]:
            continue
        region = np.zeros_like(mask)
        left[y, x] = False
        waiting = [(y, x)]
        while waiting:
            y, x = waiting.pop()
            region[y, x] = True
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width and left[v, u]:
                    left[v, u] = False
                    waiting.append((v, u))
        yield region


def _read(pixels: NDArray[np.float32], background: NDArray[np.float32], region: NDArray[np.bool_]) -> Seen:
    own = _own_color(pixels, background, region)
    distances = {name: float(np.linalg.norm(own - np.array(color))) for name, color in COLORS.items()}
    color = min(distances, key=distances.__getitem__)
    # The share of the thing's color in each pixel: 1 inside, 0 outside, between at a smooth edge.
    axis = own - background
    share = np.where(_grown(region), np.clip((pixels - background) @ axis / (axis @ axis), 0, 1), 0)
    rows, columns = np.nonzero(region)
    size = region.shape[0]
    row, column = (int(1.5 * (at.min() + at.max() + 1) / size) for at in (rows, columns))
    return Seen(color if distances[color] <= FARTHEST else UNKNOWN, _shape(share), 3 * row + column)


def _own_color(
    pixels: NDArray[np.float32], background: NDArray[np.float32], region: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the median color of the half of a region that differs most from the background: not its smooth edge."""
    colors = pixels[region]
    distance = np.linalg.norm(colors - background, axis=-1)
    return np.median(colors[distance >= np.median(distance)], axis=0)


def _grown(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a region with the pixels at its sides."""
    grown = region.copy()
    grown[1:] |= region[:-1]
    grown[:-1] |= region[1:]
    grown[:, 1:] |= region[:, :-1]
    grown[:, :-1] |= region[:, 1:]
    return grown


def _shape(share: NDArray[np.float32]) -> str:
    """Return the shape that covers `share` `[S, S]` best, drawn with the same area and the same center of gravity.

    `UNKNOWN` if it does not cover it well.
    """
    ys, xs = np.indices(share.shape) + 0.5
    area = share.sum()
    center = np.array([(share * xs).sum(), (share * ys).sum()]) / area

    def overlap(name: str) -> float:
        corners = _corners(name)
        own_area, own_center = _moments(corners)
        radius = np.sqrt(area / own_area)
        mask = _mask((corners - own_center) * radius + center, share.shape[0])
        return float(np.minimum(share, mask).sum() / np.maximum(share, mask).sum())

    overlaps = {name: overlap(name) for name in SHAPES}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= LEAST_OVERLAP else UNKNOWN


@cache
def _corners(shape: str) -> NDArray[np.float64]:
    """Return the corners of a shape, `[corners, 2]`, in the unit circle."""
    return np.array(outline(shape) or [(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 48, endpoint=False)])


def _moments(corners: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the area and the center of gravity of a polygon `[corners, 2]` (the shoelace formulas)."""
    following = np.roll(corners, -1, axis=0)
    cross = corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1]
    center = ((corners + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    return abs(cross.sum()) / 2, center


def _mask(corners: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """Return how much of each pixel a polygon covers, `[size, size]` from 0 to 1."""
    image = Image.new("L", (size * _OVERSAMPLING, size * _OVERSAMPLING))
    # Pillow's corners are centers of pixels.
    ImageDraw.Draw(image).polygon([(x, y) for x, y in (corners * _OVERSAMPLING - 0.5).tolist()], 255)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)
