"""A prompt as the model sees it, drawn: its token budget as a bar, and the tiles of every medium.

Dimensions: N tiles, H height, W width (pixels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from vila_core.config import PixelConfig, VilaConfig
    from vila_core.prompt import PreparedMedium
    from vila_core.tiles import Tiles

CELL = 144
"""Longest side of a drawn tile, pixels."""
MARGIN, GAP, LINE = 16, 4, 20
FRAMES_A_ROW = 8
COLOURS = ("#8c8c8c", "#4878d0", "#ee854a", "#6acc64", "#d65f5f", "#956cb4", "#8c613c", "#dc7ec0")


@dataclass(frozen=True)
class Part:
    """A part of the sequence: the text, or one medium with its tiles."""

    name: str
    tokens: int
    tiles: "Tiles | None"
    unit: str = "tile"
    blocks: tuple[tuple[int, int], ...] = ()
    """How the tiles are laid out, one block below another: (tiles, columns)."""

    @property
    def description(self) -> str:
        """The tiles in words."""
        if self.tiles is None:
            return ""
        count, _, height, width = self.tiles.values.shape
        text = f"{count} {self.unit}{'s'[: count != 1]} of {width}×{height} px"
        if count == 1 or self.unit == "frame":
            return text
        return f"{text} ({' + '.join(self._block_names())})"

    def _block_names(self) -> list[str]:
        assert self.tiles is not None
        layout = self.tiles.layout
        if layout.kind == "separate" and len(self.blocks) > 1:
            return [f"{layout.rows}×{layout.columns}", "thumbnail"]
        return [f"{-(-count // across)}×{across}" for count, across in self.blocks]


def read_parts(media: "Sequence[PreparedMedium]", token_counts: Mapping[str, int], config: "VilaConfig") -> list[Part]:
    """Return the text and every medium with its tokens and tiles, in the order of `token_counts`."""
    names = iter(token_counts.items())
    parts = [Part(*next(names), None)]  # the text
    for medium, (name, tokens) in zip(media, names, strict=True):
        unit = "frame" if medium.kind == "video" and config.preprocess.video_max_tiles == 1 else "tile"
        parts.append(Part(name, tokens, medium.tiles, unit, _blocks(medium.tiles, config)))
    return parts


def _blocks(tiles: "Tiles", config: "VilaConfig") -> tuple[tuple[int, int], ...]:
    """Return (tiles, columns) per block: the scales of dynamic S2, the tiles and their thumbnail, or rows of frames."""
    count, layout = len(tiles), tiles.layout
    in_grid = layout.rows * layout.columns
    scales = config.preprocess.s2_scales
    if layout.kind == "merged" and scales:
        sides = [scale // min(scales) for scale in sorted(scales)[:-1]]
        return (*((side * side, side) for side in sides), (in_grid, layout.columns))
    if layout.kind == "separate" and count > in_grid:
        return ((in_grid, layout.columns), (count - in_grid, 1))
    return ((count, layout.columns if count == in_grid > 1 else min(count, FRAMES_A_ROW)),)


def draw_parts(parts: Sequence[Part], config: "VilaConfig") -> Image.Image:
    """Draw the token budget as a bar, then every medium's tiles as the tower gets them."""
    sheets = [_draw_part(part, config.pixels) for part in parts if part.tiles is not None]
    width = max([640, *(sheet.width for sheet in sheets)]) + 2 * MARGIN
    bar = _draw_budget(parts, config.language_model.max_length, width - 2 * MARGIN)
    height = MARGIN + sum(sheet.height + MARGIN for sheet in (bar, *sheets))
    page, top = Image.new("RGB", (width, height), "white"), MARGIN
    for sheet in (bar, *sheets):
        page.paste(sheet, (MARGIN, top))
        top += sheet.height + MARGIN
    return page


def _draw_part(part: Part, pixels: "PixelConfig") -> Image.Image:
    assert part.tiles is not None
    height, width = part.tiles.values.shape[2:]
    scale = min(1.0, CELL / max(height, width)) if max(height, width) > CELL else max(1, CELL // max(height, width))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = [picture.resize(cell) for picture in tile_pictures(part.tiles, pixels)]
    across = max(columns for _, columns in part.blocks)
    rows = [-(-count // columns) for count, columns in part.blocks]
    title = f"{part.name}: {part.description}, {part.tokens:,} tokens".replace("×", "x")  # Pillow's font lacks the sign
    sheet_height = LINE + sum(rows) * (cell[1] + GAP) + (len(rows) - 1) * 2 * GAP
    sheet = Image.new(
        "RGB",
        (
            max(across * (cell[0] + GAP), round(ImageDraw.Draw(pictures[0]).textlength(title, _font())) + GAP),
            sheet_height,
        ),
        "white",
    )
    ImageDraw.Draw(sheet).text((0, 0), title, "black", _font())
    top, start = LINE, 0
    for (count, columns), of_block in zip(part.blocks, rows, strict=True):
        for index, picture in enumerate(pictures[start : start + count]):
            sheet.paste(picture, (index % columns * (cell[0] + GAP), top + index // columns * (cell[1] + GAP)))
        start += count
        top += of_block * (cell[1] + GAP) + 2 * GAP
    return sheet


def tile_pictures(tiles: "Tiles", pixels: "PixelConfig") -> list[Image.Image]:
    """Return the N tiles as pictures: the normalization is undone."""
    values = tiles.pixels.float().cpu().numpy().transpose(0, 2, 3, 1)
    values = (values * np.asarray(pixels.std, np.float32) + np.asarray(pixels.mean, np.float32)) * 255
    return [Image.fromarray(one) for one in values.round().clip(0, 255).astype(np.uint8)]


def _draw_budget(parts: Sequence[Part], context: int, width: int) -> Image.Image:
    """Draw the context as one bar, filled by part, with a legend below."""
    total = sum(part.tokens for part in parts)
    entries = [f"{part.name} {part.tokens:,}" for part in parts] + [f"left {context - total:,}"]
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(parts))] + ["#e8e8e8"]
    bar = Image.new("RGB", (width, LINE + 24 + LINE * (1 + len(entries) // 4)), "white")
    draw, font = ImageDraw.Draw(bar), _font()
    draw.text((0, 0), f"{total:,} of {context:,} tokens", "black", font)
    draw.rectangle((0, LINE, width - 1, LINE + 18), fill=colours[-1])
    used = 0
    for part, colour in zip(parts, colours, strict=False):
        draw.rectangle(
            (used * (width - 1) // context, LINE, (used + part.tokens) * (width - 1) // context, LINE + 18), fill=colour
        )
        used += part.tokens
    for index, (entry, colour) in enumerate(zip(entries, colours, strict=True)):
        left, top = index % 4 * (width // 4), LINE + 26 + index // 4 * LINE
        draw.rectangle((left, top + 2, left + 10, top + 12), fill=colour)
        draw.text((left + 16, top), entry, "black", font)
    return bar


def _font() -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(13)
