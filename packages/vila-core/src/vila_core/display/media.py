"""Pictures of images and videos, small enough for a notebook."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core.display import html
from vila_core.errors import VilaError

if TYPE_CHECKING:
    import PIL.Image

    from vila_core.media import Image, Video

LONGEST_SIDE = 480
"""Largest side of a displayed image in pixels."""
FRAMES, FRAME_HEIGHT, GAP = 8, 96, 4
"""Frames in the strip that shows a video, their height and the gap between them in pixels."""


def image_html(image: "Image") -> str:
    """Return an image as HTML: the picture, its name and size, or why it cannot be read. URLs are not fetched."""
    if image.is_remote:
        return html.card(repr(image), html.note("Not downloaded yet: .show() downloads and shows it."))
    try:
        loaded = image.load()
    except VilaError as error:
        return html.card(repr(image), html.note(str(error)))
    shown = loaded.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return html.card(repr(image), html.picture(shown), html.note(f"{loaded.width} × {loaded.height} pixels"))


def video_html(video: "Video") -> str:
    """Return a video as HTML: a strip of frames, their size and duration, or why it cannot be read."""
    if video.is_remote:
        return html.card(repr(video), html.note("Not downloaded yet: .show() downloads and shows it."))
    try:
        loaded = video.load(FRAMES)
    except VilaError as error:
        return html.card(repr(video), html.note(str(error)))
    first = loaded.frames[0]
    duration = "" if loaded.duration is None else f", {loaded.duration:.1f} s"
    caption = f"{first.width} × {first.height} pixels{duration}; {min(FRAMES, len(loaded.frames))} frames shown"
    return html.card(repr(video), html.picture(film_strip(loaded.frames)), html.note(caption))


def film_strip(frames: "Sequence[PIL.Image.Image]") -> "PIL.Image.Image":
    """Return at most `FRAMES` frames, evenly chosen, side by side (in two rows if they are wide)."""
    from PIL import Image

    chosen = [frames[index * len(frames) // min(FRAMES, len(frames))] for index in range(min(FRAMES, len(frames)))]
    cells = [
        frame.resize((max(1, min(4 * FRAME_HEIGHT, round(frame.width * FRAME_HEIGHT / frame.height))), FRAME_HEIGHT))
        for frame in chosen
    ]
    columns = min(len(cells), 4 if cells[0].width > FRAME_HEIGHT else FRAMES)
    width, rows = max(cell.width for cell in cells) + GAP, -(-len(cells) // columns)
    strip = Image.new("RGB", (columns * width - GAP, rows * (FRAME_HEIGHT + GAP) - GAP), "white")
    for index, cell in enumerate(cells):
        strip.paste(cell, (index % columns * width, index // columns * (FRAME_HEIGHT + GAP)))
    return strip
