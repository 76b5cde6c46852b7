"""Draws scenes with Pillow."""

import math
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from vila_train.tiny.world.combinations import VALUES, Rgb
from vila_train.tiny.world.scenes import CANVAS, Bar, Scene, Text, Thing

Points = tuple[tuple[float, float], ...]

CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 14, 182, 14, 176
AXIS: Rgb = (70, 70, 70)
GRID: Rgb = (200, 200, 200)


def draw(scene: Scene, size: int = CANVAS) -> Image.Image:
    """Draw `scene` as an RGB picture of `size` x `size` pixels. The result is deterministic."""
    image = Image.new("RGB", (size, size), scene.background)
    pen, scale = ImageDraw.Draw(image), size / CANVAS
    for thing in scene.things:
        _draw_thing(pen, thing, scale)
    if scene.bars:
        _draw_chart(pen, scene.bars, scale)
    if scene.text is not None:
        _draw_text(pen, scene.text, scale)
    return image


def outline(shape: str) -> Points:
    """Return the corners of `shape` within the unit circle. A circle has none: it is drawn as an ellipse."""
    return _OUTLINES[shape]


def _star() -> Points:
    radii = (1.0, 0.42)
    return tuple(
        (radii[i % 2] * math.sin(i * math.pi / 5), -radii[i % 2] * math.cos(i * math.pi / 5)) for i in range(10)
    )


def _heart() -> Points:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    curve = [
        (16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))
        for t in angles
    ]
    return tuple((x / 17.5, -(y + 2.5) / 17.5) for x, y in curve)


def _moon() -> Points:
    """Return a crescent: the unit disc minus a smaller disc to its right."""
    outer = [math.radians(a) for a in range(50, 311, 10)]
    tip_x, tip_y = math.cos(outer[0]), math.sin(outer[0])
    center = 0.58
    inner_radius, inner_tip = math.hypot(tip_x - center, tip_y), math.atan2(tip_y, tip_x - center)
    inner = [2 * math.pi - inner_tip - (2 * math.pi - 2 * inner_tip) * i / 24 for i in range(25)]
    arc = [(math.cos(a), math.sin(a)) for a in outer] + [
        (center + inner_radius * math.cos(a), inner_radius * math.sin(a)) for a in inner
    ]
    return tuple((x + 0.15, y) for x, y in arc)


_ARM = 0.34
_OUTLINES: dict[str, Points] = {
    "circle": (),
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": ((0, -0.95), (0.95, 0.75), (-0.95, 0.75)),
    "diamond": ((0, -1), (0.72, 0), (0, 1), (-0.72, 0)),
    "star": _star(),
    "heart": _heart(),
    "cross": tuple(
        (x, y)
        for x, y in (
            (-_ARM, -0.95), (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM), (0.95, _ARM), (_ARM, _ARM),
            (_ARM, 0.95), (-_ARM, 0.95), (-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM),
        )
    ),
    "moon": _moon(),
}  # fmt: skip


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, scale: float) -> None:
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape == "circle":
        pen.ellipse((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=thing.rgb)
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in outline(thing.shape)], fill=thing.rgb)


def bar_boxes(num_bars: int) -> list[tuple[float, float]]:
    """Return the left and right edges of the bars, in canvas units."""
    pitch = (CHART_RIGHT - CHART_LEFT) / num_bars
    return [(CHART_LEFT + (i + 0.2) * pitch, CHART_LEFT + (i + 0.8) * pitch) for i in range(num_bars)]


def value_height(value: int) -> float:
    """Return the y coordinate of the top of a bar, in canvas units."""
    return CHART_BOTTOM - (CHART_BOTTOM - CHART_TOP) * value / VALUES[-1]


def _draw_chart(pen: ImageDraw.ImageDraw, bars: tuple[Bar, ...], scale: float) -> None:
    line = max(1, round(2 * scale))
    for value in VALUES:
        y = value_height(value) * scale
        pen.line((CHART_LEFT * scale, y, CHART_RIGHT * scale, y), fill=GRID, width=line)
    for bar, (left, right) in zip(bars, bar_boxes(len(bars)), strict=True):
        pen.rectangle(
            (left * scale, value_height(bar.value) * scale, right * scale, CHART_BOTTOM * scale), fill=bar.rgb
        )
    left, bottom = CHART_LEFT * scale, CHART_BOTTOM * scale
    pen.line((left, CHART_TOP * scale, left, bottom, CHART_RIGHT * scale, bottom), fill=AXIS, width=line)


def _draw_text(pen: ImageDraw.ImageDraw, text: Text, scale: float) -> None:
    pen.text(
        (text.x * scale, text.y * scale), text.text, fill=text.rgb, font=_font(round(text.size * scale)), anchor="mm"
    )


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's built-in font, which is the same on every machine."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> float:
    """Return the width of `text` in canvas units."""
    return _font(size).getlength(text)
