"""A prompt as the model sees it, in HTML: the token budget as a bar, and the tiles of every image and video.

Dimensions: N tiles.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from vila_core.display.tiles import Part, read_parts, tile_pictures
from vila_serve.page.texts import Texts

if TYPE_CHECKING:
    from vila_core import Vila
    from vila_core.prompt import PreparedPrompt
    from vila_core.tiles import Tiles

TILE_SIDE = 112
"""Longest side of a shown tile, pixels."""
MAX_TILES = 48
"""Tiles shown of one medium."""
MAX_MEDIA = 16
"""Images and videos shown of one prompt."""
COLORS = 7
"""Colors of the bar; the style sheet has `--part-0` to `--part-6`."""


def seen_html(model: "Vila", prompt: "PreparedPrompt", texts: Texts) -> str:
    """Return the token budget of a prompt and its tiles."""
    parts = read_parts(prompt.media, model.count_tokens(prompt), model.config)
    media = [
        _medium_html(part, number, model, texts)
        for number, part in enumerate(parts[: MAX_MEDIA + 1])
        if part.tiles is not None
    ]
    hidden = len(parts) - 1 - len(media)
    more = f'<p class="seen-note">{texts.more_tiles.format(count=hidden)}</p>' if hidden > 0 else ""
    budget = _budget_html(parts, model.config.language_model.max_length, texts)
    return f'<div class="seen">{budget}{"".join(media)}{more}</div>'


def _budget_html(parts: Sequence[Part], context: int, texts: Texts) -> str:
    used = sum(part.tokens for part in parts)
    bar = "".join(
        f'<i style="width:{100 * part.tokens / context:.2f}%;background:{_color(number)}"></i>'
        for number, part in enumerate(parts)
    )
    legend = "".join(
        f'<li><b style="background:{_color(number)}"></b>{_name(part, texts)} <span>{part.tokens:,}</span></li>'
        for number, part in enumerate(parts[: MAX_MEDIA + 1])
    )
    legend += f'<li><b class="seen-free"></b>{texts.left} <span>{max(context - used, 0):,}</span></li>'
    title = texts.seen_budget.format(used=f"{used:,}", context=f"{context:,}")
    return f'<p class="seen-title">{title}</p><div class="seen-bar">{bar}</div><ul class="seen-legend">{legend}</ul>'


def _medium_html(part: Part, number: int, model: "Vila", texts: Texts) -> str:
    tiles = part.tiles
    assert tiles is not None
    height, width = tiles.values.shape[2:]
    size, tokens = f"{width}×{height}", f"{part.tokens:,}"
    if part.unit == "frame":
        facts = texts.frame_tiles.format(tokens=tokens, size=size, count=len(tiles))
    else:
        layout = " + ".join(f"{-(-count // columns)}×{columns}" for count, columns in part.blocks)
        facts = texts.tiles.format(tokens=tokens, size=size, layout=layout)
    blocks, start = "", 0
    for count, columns in part.blocks:
        shown = min(count, MAX_TILES - start)
        pictures = _pictures(tiles, start, shown, model)
        cells = "".join(f'<img src="{_data_uri(picture)}" alt="">' for picture in pictures)
        blocks += f'<div class="seen-tiles" style="--columns:{columns}">{cells}</div>' if cells else ""
        start += count
    hidden = len(tiles) - MAX_TILES
    more = f'<p class="seen-note">{texts.more_tiles.format(count=hidden)}</p>' if hidden > 0 else ""
    return (
        f'<div class="seen-medium"><p><b style="background:{_color(number)}"></b><strong>{_name(part, texts)}</strong> '
        f"<span>{facts}</span></p>{blocks}{more}</div>"
    )


def _pictures(tiles: "Tiles", start: int, count: int, model: "Vila") -> list[Image.Image]:
    if count <= 0:
        return []
    return tile_pictures(replace(tiles, values=tiles.values[start : start + count]), model.config.pixels)


def _name(part: Part, texts: Texts) -> str:
    """Return the name of a part ("text", "image 1", "video 2") in the language of the page."""
    kind, _, number = part.name.partition(" ")
    pattern = {"text": texts.text, "image": texts.image, "video": texts.video}.get(kind, part.name)
    return html.escape(pattern.format(number=number))


def _color(number: int) -> str:
    return f"var(--part-{number % COLORS})"


def _data_uri(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((TILE_SIDE, TILE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
