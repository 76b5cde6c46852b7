"""Opens video files with PyAV: the containers and codecs that are allowed, and the choice of the video stream."""

from collections.abc import Callable
from typing import IO, TYPE_CHECKING, cast

from vila_core.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Only common containers and codecs: libav has hundreds, including playlists that open other files and unmaintained
# decoders.
CONTAINERS = (
    "mov",
    "mp4",
    "m4a",
    "3gp",
    "3g2",
    "mj2",
    "matroska",
    "webm",
    "avi",
    "mpeg",
    "mpegts",
    "mpegvideo",
    "m4v",
    "flv",
    "ogg",
    "asf",
    "gif",
    "mxf",
    "yuv4mpegpipe",
    "nut",
    "ivf",
    "rm",
    "dv",
)
CODECS = (
    *(
        "h264",
        "hevc",
        "av1",
        "libdav1d",
        "vp8",
        "vp9",
        "libvpx",
        "libvpx-vp9",
        "mpeg4",
        "mpeg1video",
        "mpeg2video",
        "mjpeg",
        "gif",
        "theora",
    ),
    *(
        "h263",
        "flv",
        "flv1",
        "msmpeg4",
        "msmpeg4v1",
        "msmpeg4v2",
        "msmpeg4v3",
        "wmv1",
        "wmv2",
        "wmv3",
        "vc1",
        "prores",
        "dnxhd",
        "ffv1",
    ),
    *("vp6", "vp6a", "vp6f", "rv10", "rv20", "rv30", "rv40"),
    *("rawvideo", "huffyuv", "ffvhuff", "png", "qtrle", "cinepak", "dvvideo"),
)


def open_container(file: IO[bytes]) -> "InputContainer":
    """Open a video file with PyAV. Only common containers and codecs are allowed, and no other files are opened."""
    import av

    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
    }
    # Metadata in another encoding should not make a video unreadable. From version 19, PyAV ignores it by default.
    tolerant = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
    # Not as `options`: PyAV before 18 corrupts memory when it passes them to streams that appear later (MPEG-PS).
    return cast("Callable[..., InputContainer]", av.open)(file, "r", container_options=options, **tolerant)


def video_stream(container: "InputContainer", name: str) -> "VideoStream":
    """Return the stream that ffmpeg would choose: the default one, then the one with the most pixels, then the first.

    Cover images and thumbnails are no video. Source: FFmpeg, `fftools/ffmpeg_mux_init.c` (map_auto_video).

    Raises:
        MediaError: there is no video stream.
    """
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        what = "only audio" if container.streams.audio else "no picture"
        raise MediaError(f"{name} has no video stream, {what}. Use a file with video.")
    return max(streams, key=lambda stream: (bool(stream.disposition & Disposition.default), _pixels(stream)))


def _pixels(stream: "VideoStream") -> int:
    codec = stream.codec_context
    return 0 if codec is None else codec.width * codec.height  # pyright: ignore[reportUnnecessaryComparison]
