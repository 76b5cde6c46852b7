"""Drawn images for the built-in calibration: shapes, bar charts, receipts and pages of text, with questions."""

import random
from collections.abc import Callable

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from vila_core.media import Image
from vila_quant.calibration.sample import Sample

COLORS = {
    "red": "#c62828",
    "orange": "#ef6c00",
    "yellow": "#f9a825",
    "green": "#2e7d32",
    "blue": "#1565c0",
    "purple": "#6a1b9a",
}
SHAPES = ("circle", "square", "triangle")
SIZES = ((448, 448), (640, 448), (448, 640), (800, 600))
GOODS = ("bread", "milk", "apples", "rice", "coffee", "cheese", "honey", "tea", "flour", "eggs")


def draw_sample(number: int, seed: int, text: str) -> Sample:
    """Return image `number` of a series, with its question and answer; pages show parts of `text`."""
    rng = random.Random(f"{seed} {number}")
    kinds: tuple[Callable[[random.Random], Sample], ...] = (
        _shapes,
        _chart,
        _prices,
        lambda source: _page(source, text),
    )
    return kinds[number % len(kinds)](rng)


def _canvas(rng: random.Random) -> tuple[PIL.Image.Image, PIL.ImageDraw.ImageDraw]:
    top, bottom = (tuple(rng.randint(170, 255) for _ in range(3)) for _ in range(2))
    width, height = rng.choice(SIZES)
    gradient = PIL.Image.linear_gradient("L").resize((width, height))
    picture = PIL.Image.composite(
        PIL.Image.new("RGB", (width, height), bottom), PIL.Image.new("RGB", (width, height), top), gradient
    )
    return picture, PIL.ImageDraw.Draw(picture)


def _shapes(rng: random.Random) -> Sample:
    picture, draw = _canvas(rng)
    seen: list[str] = []
    for _ in range(rng.randint(2, 7)):
        shape, color, size = rng.choice(SHAPES), rng.choice(list(COLORS)), rng.randint(40, 140)
        x, y = rng.randint(0, picture.width - size), rng.randint(0, picture.height - size)
        if shape == "circle":
            draw.ellipse((x, y, x + size, y + size), COLORS[color])
        elif shape == "square":
            draw.rectangle((x, y, x + size, y + size), COLORS[color])
        else:
            draw.polygon(((x, y + size), (x + size, y + size), (x + size / 2, y)), COLORS[color])
        seen.append(f"a {color} {shape}")
    answer = f"The picture shows {len(seen)} shapes on a pale background: {', '.join(seen[:-1])} and {seen[-1]}."
    return Sample((Image(picture), "Describe the image in detail."), answer)


def _chart(rng: random.Random) -> Sample:
    picture, draw = _canvas(rng)
    labels = rng.sample(GOODS, rng.randint(3, 6))
    values = [rng.randint(5, 100) for _ in labels]
    width = picture.width / len(labels)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        left, top = index * width + width * 0.2, picture.height * (0.9 - 0.8 * value / 100)
        draw.rectangle((left, top, left + width * 0.6, picture.height * 0.9), rng.choice(list(COLORS.values())))
        draw.text((left, picture.height * 0.92), label, "black", font=PIL.ImageFont.load_default(16))
        draw.text((left, top - 22), str(value), "black", font=PIL.ImageFont.load_default(16))
    most = labels[values.index(max(values))]
    return Sample(
        (Image(picture), "Which bar is the highest, and what is its value?"),
        f"{most.capitalize()}, with a value of {max(values)}.",
    )


def _prices(rng: random.Random) -> Sample:
    picture, draw = _canvas(rng)
    rows = [(name, rng.randint(1, 9), rng.randint(50, 1999)) for name in rng.sample(GOODS, rng.randint(3, 7))]
    font = PIL.ImageFont.load_default(20)
    draw.text((30, 20), f"Receipt No. {rng.randint(1000, 9999)}", "black", font=PIL.ImageFont.load_default(26))
    for line, (name, count, price) in enumerate(rows):
        draw.text((30, 80 + 40 * line), f"{count} x {name}", "black", font=font)
        draw.text((picture.width - 120, 80 + 40 * line), f"{count * price / 100:.2f}", "black", font=font)
    total = sum(count * price for _, count, price in rows) / 100
    listed = "; ".join(f"{name}: {count * price / 100:.2f}" for name, count, price in rows)
    return Sample((Image(picture), "List what was bought, and the total."), f"{listed}. The total is {total:.2f}.")


def _page(rng: random.Random, text: str) -> Sample:
    picture, draw = _canvas(rng)
    words = text.split()
    start = rng.randint(0, max(0, len(words) - 60))
    columns = picture.width // 12
    lines: list[str] = [""]
    for word in words[start : start + 60]:
        if len(lines[-1]) + len(word) > columns:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    lines = lines[: (picture.height - 60) // 30]
    for row, line in enumerate(lines):
        draw.text((30, 30 + 30 * row), line, "black", font=PIL.ImageFont.load_default(20))
    return Sample((Image(picture), "Read the text in the image."), " ".join(lines))
