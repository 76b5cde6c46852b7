"""Images and videos: sources, decoding and limits."""

from vila_core.media.inputs import Image, Media, Video, open_media
from vila_core.media.limits import FetchPolicy, MediaLimits
from vila_core.media.signatures import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from vila_core.media.video import VideoFrames

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "FetchPolicy",
    "Image",
    "Media",
    "MediaLimits",
    "Video",
    "VideoFrames",
    "open_media",
]
