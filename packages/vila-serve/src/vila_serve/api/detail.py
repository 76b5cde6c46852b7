"""OpenAI's `detail` of an image, for models that cut images into tiles: `low` gives the fewest tiles."""

import asyncio

import PIL.Image

from vila_core import Image, MediaLimits, Video
from vila_serve.api.conversation import Media


class OneTileForLowDetail:
    """Opens media, and gives images of low detail the size of one tile.

    A square of that size gets the fewest tiles that the model's way of tiling has: one, with `dynamic`.

    Args:
        media: opens images and videos.
        size: width and height of a tile, in pixels.
    """

    def __init__(self, media: Media, size: int):
        self._media = media
        self._size = size

    async def open_image(self, url: str, detail: str | None = None) -> Image:
        """Return the image. Raises `MediaError` as the media do."""
        image = await self._media.open_image(url, detail)
        return await asyncio.to_thread(self._shrink, image) if detail == "low" else image

    def _shrink(self, image: Image) -> Image:
        picture = image.load(MediaLimits(fetch=None))
        return Image(picture.resize((self._size, self._size), PIL.Image.Resampling.BICUBIC))

    async def open_video(self, url: str, frames: int | None = None, fps: float | None = None) -> Video:
        """Return the video. Raises `MediaError` as the media do."""
        return await self._media.open_video(url, frames, fps)
