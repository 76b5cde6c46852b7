"""Keeps the videos prepared last, so that a second question about one neither decodes nor resizes it again."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vila_core.recently_used import RecentlyUsed

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
        self._kept = RecentlyUsed[PreparedVideo](max_bytes)

    def get(self, video: "Video") -> PreparedVideo | None:
        """Return what was kept of a video with the same content and options."""
        key = video.content_key()
        return None if key is None else self._kept.get(key)

    def keep(self, video: "Video", prepared: PreparedVideo) -> None:
        """Keep a prepared video; those used longest ago go, if there is no room."""
        key = video.content_key()
        if key is not None:
            self._kept.keep(key, prepared, prepared.medium.tiles.values.nbytes)
