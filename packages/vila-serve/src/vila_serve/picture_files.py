"""Pictures of answers as files: an image in any of three formats, a video as an animated WebP."""

import asyncio
import base64

from vila_core.generation.files import picture_bytes
from vila_serve.answering import Picture

BEST = 100


async def as_base64(picture: Picture, output_format: str = "png", quality: int = BEST) -> str:
    """Return a picture as the base64 of a file, made in a thread. `quality` is for JPEG and WebP, 0 to 100."""
    return await asyncio.to_thread(lambda: base64.b64encode(as_file(picture, output_format, quality)).decode())


async def as_data_uri(picture: Picture) -> str:
    """Return a picture as a `data:` URI: an image as PNG, a video as WebP."""
    if picture.kind == "video":
        return f"data:image/webp;base64,{await as_base64(picture, 'webp')}"
    return f"data:image/png;base64,{await as_base64(picture)}"


def as_file(picture: Picture, output_format: str = "png", quality: int = BEST) -> bytes:
    """Return the bytes of a file."""
    options = {} if output_format == "png" else {"quality": quality}
    return picture_bytes(picture.frames, output_format.upper(), options)
