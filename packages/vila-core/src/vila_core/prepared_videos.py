"""Keeps the videos prepared last, so that a second question about one neither decodes nor resizes it again."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vila_core.media import Video
    from vila_core.prompt import PreparedMedium


@dataclass(frozen=True)
class PreparedVideo:
    """A video, ready for the network; `duration` is in seconds, None if it is not known."""

    medium: "PreparedMedium"
    duration: float | None


class PreparedVideos:
    """The videos prepared last, with one model's settings. Its methods may be called from any thread.

    Args:
        max_bytes: how much is kept.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._kept: OrderedDict[object, PreparedVideo] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, video: "Video") -> PreparedVideo | None:
        """Return what was kept of a video with the same content and options."""
        key = video.content_key()
        with self._lock:
            found = self._kept.get(key) if key is not None else None
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, video: "Video", prepared: PreparedVideo) -> None:
        """Keep a prepared video; those used longest ago go, if there is no room."""
        key, nbytes = video.content_key(), prepared.medium.tiles.pixels.nbytes
        if key is None or nbytes > self._max_bytes:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = prepared
            self._bytes += nbytes
            while self._bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.medium.tiles.pixels.nbytes
