"""Images and videos inside requests, as `data:` URIs."""

import asyncio
import re

from vila_core import Image, MediaLimits, Video
from vila_core.errors import MediaError

_DATA_URI = re.compile(r"data:(image|video)/[A-Za-z0-9.+-]+;base64,")


class InlineMedia:
    """Opens `data:` URIs, in threads of this process, and refuses addresses.

    Args:
        limits: on the size of media.
        num_frames, fps: for videos that do not say which frames to sample.
    """

    def __init__(self, limits: MediaLimits, num_frames: int, fps: float):
        self._limits = limits
        self._num_frames = num_frames
        self._fps = fps

    async def open_image(self, url: str, detail: str | None = None) -> Image:
        """Return the decoded image. Raises `MediaError`."""
        _check(url, "image")
        return Image(await asyncio.to_thread(Image(url).load, self._limits))

    async def open_video(self, url: str, frames: int | None = None, fps: float | None = None) -> Video:
        """Return the video, to be decoded with the prompt. Raises `MediaError`."""
        _check(url, "video")
        return Video(url, frames=frames, fps=fps)


def _check(url: str, kind: str) -> None:
    found = _DATA_URI.match(url[:100])
    if found is None or found[1] != kind:
        raise MediaError(f"An {kind} must be sent as a URI 'data:{kind}/…;base64,…'.".replace("An video", "A video"))
