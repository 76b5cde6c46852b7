"""The only way of media into the server: `data:` URIs and, from allowed hosts, https. Local files are never opened."""

import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NoReturn

from vila_core import Image, MediaLimits, Video
from vila_core.engine.limits import QueueFullError
from vila_core.errors import MediaError, MediaLimitError
from vila_core.media.fetch import fetch
from vila_core.media.limits import MIB
from vila_core.media.urls import parse_url, shorten_url
from vila_serve.media import outward
from vila_serve.media.held_memory import HeldMemory
from vila_serve.media.limits import DecodeLimits
from vila_serve.media.messages import Decoded, Job, Kind
from vila_serve.media.pool import DecodePool, DecodingFailedError, Pictures, as_frames, run_cancellable
from vila_serve.shared_files import write_file

log = logging.getLogger(__name__)

_DATA_URI = re.compile(r"data:(?!//)", re.IGNORECASE)
_HTTP_URL = re.compile(r"https?://", re.IGNORECASE)


class MediaDoor:
    """Opens the images and videos that clients send. The event loop never waits for it.

    Args:
        limits: on media, and where they may be fetched from. See `server_limits`.
        num_frames, fps: for videos that do not say which frames to sample.
        tile_size: side in pixels of the model's tiles. An image of low detail (OpenAI's `detail`) is resized to such a
            square, which gets the fewest tiles that the model's tiling has. None for a model with one tile per image.
        decoding: limits on the processes that decode.
    """

    def __init__(
        self,
        limits: MediaLimits,
        num_frames: int,
        fps: float = 0.0,
        *,
        tile_size: int | None = None,
        decoding: DecodeLimits | None = None,
    ):
        decoding = decoding or DecodeLimits()
        self._tile_size = tile_size
        self.limits = limits
        self._num_frames = num_frames
        self._fps = fps
        self._decoding = decoding
        self._pool = DecodePool(decoding)
        self._fetching = ThreadPoolExecutor(decoding.max_fetches, "vila-fetch")
        self._held = HeldMemory()

    def start(self) -> None:
        """Start the processes that decode, so that the first request need not wait for them."""
        self._pool.start()

    def close(self) -> None:
        """End the processes."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    async def open_image(self, url: str, detail: str | None = None) -> Image:
        """Return the decoded image at a `data:` URI or, if allowed, an https URL. `detail` may be "low" or "high".

        Raises:
            MediaError: it cannot be opened, or is over a limit. The message may be shown to strangers.
            QueueFullError: the media of other requests take too much memory now.
        """
        job = Job(
            kind="image",
            is_data_uri=False,
            limits=self._limits_of_jobs,
            seconds=self._decoding.image_seconds,
            square=self._tile_size if detail == "low" else None,
        )
        _, (picture,) = await self._open(url, job)
        self._held.add(picture, picture.nbytes)
        return Image(picture)

    async def open_video(self, url: str, frames: int | None = None, fps: float | None = None) -> Video:
        """Return the sampled frames of the video at a `data:` URI or, if allowed, an https URL.

        `frames` and `fps` are as in `vila_core.Video`.

        Raises:
            MediaError: it cannot be opened, is over a limit, or `frames` or `fps` is out of range. The message may be
                shown to strangers.
            QueueFullError: the media of other requests take too much memory now.
        """
        frames = self._num_frames if frames is None else frames
        fps = self._fps if fps is None else fps
        Video(b"", frames, fps)  # raises for impossible values
        job = Job(
            kind="video",
            is_data_uri=False,
            limits=self._limits_of_jobs,
            seconds=self._decoding.video_seconds,
            frames=min(frames, self.limits.max_frames + 1),  # one too many is refused by the process
            fps=fps,
        )
        decoded, pictures = await self._open(url, job)
        sampled = as_frames(decoded, pictures)
        self._held.add(sampled, sum(picture.nbytes for picture in pictures))
        return Video(sampled)

    @property
    def _limits_of_jobs(self) -> MediaLimits:
        return self.limits.model_copy(update={"fetch": None})

    async def _open(self, url: str, job: Job) -> tuple[Decoded, Pictures]:
        kind = job.kind
        if self._held.bytes > self._decoding.max_decoded_bytes:
            raise QueueFullError("The decoded images and videos of other requests take too much memory now.")
        content: bytes | IO[bytes]
        if _DATA_URI.match(url):
            self._check_length(url, kind)
            content, is_data_uri = url.encode("ascii", "replace"), True
        elif _HTTP_URL.match(url):
            content, is_data_uri = await self._fetch(url, kind), False
        else:
            self._refuse(kind, outward.wrong_source(kind, self.limits), f"neither data: nor https: {url[:40]!r}")
        try:
            return await self._pool.decode(job.model_copy(update={"is_data_uri": is_data_uri}), content)
        except DecodingFailedError as error:
            self._refuse(kind, self._outward(kind, error), str(error))

    def _check_length(self, uri: str, kind: Kind) -> None:
        """Refuse a `data:` URI that is too long for any content, before it is copied."""
        most = self.limits.max_image_bytes if kind == "image" else self.limits.max_video_bytes
        if len(uri) > most * 4 + 4096:  # each character of base64 may be percent-encoded
            limit = f"max_{kind}_bytes"
            self._refuse(kind, outward.over_limit(kind, limit, self.limits), f"{limit}: {len(uri):,} characters")

    async def _fetch(self, url: str, kind: Kind) -> IO[bytes]:
        policy = self.limits.fetch
        if policy is None:
            self._refuse(kind, outward.refused_url(kind, self.limits), f"fetching is off: {shorten_url(url)}")
        try:
            parse_url(url, policy, shorten_url(url))
        except MediaError as error:
            self._refuse(kind, outward.refused_url(kind, self.limits), str(error))
        most = self.limits.max_image_bytes if kind == "image" else self.limits.max_video_bytes

        def work(is_cancelled: Callable[[], bool]) -> IO[bytes]:
            with fetch(url, policy, most, is_cancelled=is_cancelled) as body:
                return os.fdopen(write_file(iter(lambda: body.read(MIB), b"")), "rb")

        try:
            return await run_cancellable(self._fetching, work)
        except MediaLimitError as error:
            self._refuse(kind, outward.over_limit(kind, error.limit, self.limits), str(error))
        except MediaError as error:
            self._refuse(kind, outward.failed_fetch(kind), str(error))

    def _outward(self, kind: Kind, error: DecodingFailedError) -> str:
        if error.is_too_slow:
            return outward.too_slow(kind)
        if error.failed is None:
            return outward.unreadable(kind)
        if error.failed.problem == "limit":
            return outward.over_limit(kind, error.failed.limit or "", self.limits)
        if error.failed.problem == "data_uri":
            return outward.wrong_source(kind, self.limits)
        return outward.unreadable(kind)

    def _refuse(self, kind: Kind, message: str, detail: str) -> NoReturn:
        """Log why, and raise an error that says only what strangers may know."""
        log.warning("Refused an %s: %s" if kind == "image" else "Refused a %s: %s", kind, detail)
        raise MediaError(message)
