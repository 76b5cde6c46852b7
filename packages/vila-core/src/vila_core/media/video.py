"""Samples and decodes the frames of video files with PyAV.

All packets are read once without decoding to locate the frames. Then only the groups of pictures that contain sampled
frames are decoded. If the packets are not enough (no timestamps, a start in mid-stream, damage), the whole video is
decoded.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import IO, TYPE_CHECKING

from vila_core.errors import MediaError, MediaLimitError
from vila_core.media.containers import CODECS, open_container, video_stream
from vila_core.media.images import check_pixels
from vila_core.media.limits import MediaLimits
from vila_core.media.orientation import as_displayed
from vila_core.media.signatures import HEAD_BYTES, describe_content

if TYPE_CHECKING:
    import av
    import PIL.Image
    from av.video.stream import VideoStream

_ADVICE = "Convert it to MP4 with H.264 video (ffmpeg -i in -pix_fmt yuv420p out.mp4)."


SMALL_VIDEO_PIXELS = 150_000_000
"""Sampled pixels that any file may have: 600 MB, as Pillow takes four bytes a pixel."""
MAX_FRAME_PIXELS = 50_000_000
"""Width x height of a frame. An 8K frame has 33 million; decoding one takes up to 16 bytes a pixel."""
SMALLEST_FRAME = 10_000
"""Pixels that the smallest frame counts as, for the time that every frame takes."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames sampled from a video.

    Attributes:
        frames: RGB pictures.
        indices: index of each frame in the source.
        timestamps: seconds from the start of the source; None if unknown (a folder or list of frames without `fps`).
        duration: length of the source in seconds; None if unknown.
    """

    frames: "list[PIL.Image.Image]"
    indices: list[int]
    timestamps: list[float] | None
    duration: float | None


def sample_indices(total: int, num_frames: int, video_fps: float, fps: float) -> list[int]:
    """Choose frames of a video of `total` frames, exactly as the reference (`llava.utils.media._load_video`) does.

    With `fps` 0, `num_frames` frames are spread evenly from first to last, and repeated if there are fewer. With `fps`
    above 0, one frame is taken every 1/fps seconds, at most `num_frames`; none if `video_fps`, the rate of the video,
    is unknown (0). Ties round to even, as in numpy. Both rules count frames, which assumes a constant frame rate: see
    `sample_times` for videos without one.
    """
    if fps > 0:
        count = count_samples(total / video_fps if video_fps > 0 else 0.0, num_frames, fps)
        return [min(int(i * (1.0 / fps) * video_fps), total - 1) for i in range(count)]
    if num_frames == 1:
        return [0]
    step = (total - 1) / (num_frames - 1)
    return [round(i * step) for i in range(num_frames - 1)] + [total - 1]


def sample_times(times: Sequence[float], duration: float, num_frames: int, fps: float) -> list[int]:
    """Choose the frames that a player shows at 0, 1/fps, 2/fps, … seconds, at most `num_frames`.

    For videos with a variable frame rate or a jump in time; the reference counts frames there too (`sample_indices`).

    Args:
        times: seconds from the first frame to each frame, in order.
        duration: length of the video in seconds.
        num_frames: the largest number of frames.
        fps: samples per second, above 0.
    """
    tolerance = 1e-6  # timestamps are rounded to the container's time base
    return [bisect_right(times, i / fps + tolerance) - 1 for i in range(count_samples(duration, num_frames, fps))]


def count_samples(duration: float, num_frames: int, fps: float) -> int:
    """Return how many samples, one every 1/fps seconds, a video of `duration` seconds has, at most `num_frames`."""
    wanted = duration / (1.0 / fps)  # as in the reference, whose rounding differs from that of duration * fps
    return num_frames if wanted >= num_frames else math.ceil(wanted)


def decode_video(file: IO[bytes], name: str, num_frames: int, fps: float, limits: MediaLimits) -> VideoFrames:
    """Sample frames from an open video file and apply its rotation metadata.

    Raises:
        MediaError: the file is not a video, has no video stream or no readable frame, has an unknown frame rate
            although `fps` is given, or is over a limit.
    """
    from av.error import FFmpegError

    head = file.read(HEAD_BYTES)
    try:
        with closing(_Reader(file, name, limits)) as reader:
            return reader.read(num_frames, fps)
    except (FFmpegError, ValueError, MemoryError):
        raise MediaError(
            f"{name} is not a readable video: unsupported format, no frames or damaged. "
            f"{describe_content(head, 'Video')}{_ADVICE}"
        ) from None


@dataclass(frozen=True)
class _Timeline:
    """The frames of a video in display order.

    Attributes:
        total: number of frames.
        pts: timestamps in units of the stream's time base; empty if unknown.
        times: seconds from the first frame to each frame, as `pts`.
        keyframes: (pts, dts) of the frames where decoding can start, in order.
    """

    total: int
    pts: list[int]
    times: list[float]
    keyframes: list[tuple[int, int]]


class _Reader:
    """One open video."""

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits):
        self.file = file
        self.name = name
        self.limits = limits
        size = file.seek(0, os.SEEK_END)
        self.work_left = limits.max_video_pixels + limits.max_pixels_per_byte * size
        self.open()

    def open(self) -> None:
        """Open the file at its start and check the header."""
        self.file.seek(0)
        self.container = open_container(self.file)
        self.stream = video_stream(self.container, self.name)
        self.codec = self.stream.codec_context
        name_of_codec = "unknown" if self.codec is None else self.codec.codec.canonical_name  # pyright: ignore[reportUnnecessaryComparison]
        if name_of_codec not in CODECS:
            raise MediaError(f"{self.name}: its codec ({name_of_codec}) is not supported. {_ADVICE}")
        if self.codec.width and self.codec.height:
            _check_frame(self.codec.width, self.codec.height, self.name, self.limits)
        # libav also checks this if the size changes in the stream.
        self.codec.options = {"max_pixels": str(min(self.limits.max_pixels, MAX_FRAME_PIXELS))}
        self.codec.thread_type = "AUTO"

    def close(self) -> None:
        self.container.close()

    def read(self, num_frames: int, fps: float) -> VideoFrames:
        timeline = self.scan_packets()
        if timeline:
            indices = self.choose(timeline, num_frames, fps)
            found = self.decode_groups(timeline, sorted(set(indices)))
            if len(found) == len(set(indices)):
                return self.collect(timeline, indices, found)
        timeline = self.scan_frames()
        indices = self.choose(timeline, num_frames, fps)
        return self.collect(timeline, indices, self.decode_in_order(set(indices)))

    # ---- locating frames

    def scan_packets(self) -> _Timeline | None:
        """Build the timeline from packets without decoding. Return None if packets may not match frames."""
        if self.codec.codec.canonical_name == "vp8":  # has packets that are never displayed
            return None
        if self.container.format.name == "avi" and self.codec.has_b_frames:  # AVI does not store the display order
            return None
        pts: list[int] = []
        keyframes: list[tuple[int, int]] = []
        for packet in self.packets():
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None or packet.dts is None:
                return None
            pts.append(packet.pts)
            self.check_length(len(pts), abs(packet.pts - pts[0]))
            if packet.is_keyframe:
                keyframes.append((packet.pts, packet.dts))
        pts.sort()
        keyframes.sort()
        decodable = bool(keyframes) and keyframes[0][0] == pts[0] and all(a < b for a, b in pairwise(pts))
        return _Timeline(len(pts), pts, self.times(pts), keyframes) if decodable else None

    def scan_frames(self) -> _Timeline:
        """Build the timeline by decoding the whole video. Only readable frames count."""
        pts: list[int | None] = []
        for frame in self.frames_from(None):
            pts.append(frame.pts)
            self.check_length(len(pts), abs(frame.pts - pts[0]) if frame.pts is not None and pts[0] is not None else 0)
        if not pts:
            raise MediaError(
                f"{self.name} has a video stream but no readable frame: it is empty or damaged. "
                "Check that the file is complete."
            )
        known = [p for p in pts if p is not None]
        ordered = len(known) == len(pts) and all(a < b for a, b in pairwise(known))
        known = known if ordered else []
        return _Timeline(len(pts), known, self.times(known), [])

    def check_length(self, frames: int, ticks: int) -> None:
        seconds = max(self.seconds(ticks), frames / 1000)  # without timestamps, assume at most 1000 fps
        if seconds > self.limits.max_video_seconds:
            raise MediaLimitError(
                f"{self.name} is longer than the limit of {self.limits.max_video_seconds:,.0f} s. "
                "Cut it, or raise the limit with MediaLimits(max_video_seconds=…).",
                "max_video_seconds",
            )

    def seconds(self, ticks: int) -> float:
        return float(ticks * self.stream.time_base) if self.stream.time_base else 0.0

    # ---- sampling

    def choose(self, timeline: _Timeline, num_frames: int, fps: float) -> list[int]:
        rate = self.rate(timeline)
        if fps > 0 and not rate:
            raise MediaError(
                f"{self.name} has an unknown frame rate, so fps={fps:g} has no meaning. Use a number of frames instead."
            )
        duration = self.duration(timeline, rate) if fps else 0.0
        wanted = count_samples(duration, num_frames, fps) if fps else num_frames
        check_frames(wanted, 0, self.name, self.limits)  # before a list of this length is created
        if fps and not self.is_constant(timeline, rate):
            indices = sample_times(timeline.times, duration, num_frames, fps)
        else:
            indices = sample_indices(timeline.total, num_frames, rate, fps)
        pixels = len(set(indices)) * self.codec.width * self.codec.height
        check_frames(len(indices), pixels, self.name, self.limits)
        self.check_sampled_pixels(pixels)
        return indices

    def check_sampled_pixels(self, pixels: int) -> None:
        """Raise `MediaError` if the frames of a small file would take very much memory."""
        size = self.file.seek(0, os.SEEK_END)
        if pixels > max(SMALL_VIDEO_PIXELS, self.limits.max_pixels_per_byte * size):
            raise MediaLimitError(
                f"{self.name}: the sampled frames have {pixels:,} pixels in total, too many for a video of "
                f"{size:,} bytes. Sample fewer frames, or raise the limit with MediaLimits(max_pixels_per_byte=…).",
                "max_pixels_per_byte",
            )

    def rate(self, timeline: _Timeline) -> float:
        """Return the frame rate of the container, or of the timestamps if they contradict it. 0 if unknown."""
        stated = float(self.stream.guessed_rate or self.stream.average_rate or 0)
        span = timeline.times[-1] if timeline.times else 0.0
        if span <= 0 or (stated and abs((timeline.total - 1) / stated - span) <= max(0.01 * span, 1 / stated)):
            return stated
        return (timeline.total - 1) / span

    def times(self, pts: list[int]) -> list[float]:
        """Return the seconds from the first timestamp to each."""
        return [self.seconds(ticks - pts[0]) for ticks in pts]

    def is_constant(self, timeline: _Timeline, rate: float) -> bool:
        """Return whether every frame is shown within half a frame of where a constant rate puts it."""
        return all(abs(time * rate - index) <= 0.5 for index, time in enumerate(timeline.times))

    def duration(self, timeline: _Timeline, rate: float) -> float:
        """Return the length in seconds; the last frame is shown as long as an average one. 0 if unknown."""
        if not rate:
            return 0.0
        if not timeline.pts or self.is_constant(timeline, rate):
            return timeline.total / rate
        return timeline.times[-1] + 1 / rate

    def collect(self, timeline: _Timeline, indices: list[int], found: "dict[int, PIL.Image.Image]") -> VideoFrames:
        taken = [i for i in indices if i in found]
        if not taken:
            raise MediaError(f"{self.name}: none of the sampled frames can be read. Check that the file is complete.")
        rate = self.rate(timeline)
        if timeline.pts:
            timestamps = [timeline.times[i] for i in taken]
        else:
            timestamps = [i / rate for i in taken] if rate else None
        return VideoFrames([found[i] for i in taken], taken, timestamps, self.duration(timeline, rate) or None)

    # ---- decoding

    def decode_groups(self, timeline: _Timeline, wanted: list[int]) -> "dict[int, PIL.Image.Image]":
        """Decode the wanted frames (sorted), each from the last keyframe before it. Unreadable frames are missing."""
        index_of = {pts: i for i, pts in enumerate(timeline.pts)}
        found: dict[int, PIL.Image.Image] = {}
        starts = [pts for pts, _ in timeline.keyframes]
        for key, group in groupby(wanted, lambda i: bisect_right(starts, timeline.pts[i]) - 1):
            missing = set(group)
            last = timeline.pts[max(missing)]
            for frame in self.frames_from(timeline.keyframes[key][1]):
                if frame.pts is None or frame.pts > last:
                    break
                index = index_of.get(frame.pts)
                if index in missing and not frame.is_corrupt:
                    found[index] = self.to_image(frame)
                    missing.remove(index)
                if not missing:
                    break
        return found

    def decode_in_order(self, wanted: set[int]) -> "dict[int, PIL.Image.Image]":
        """Decode from the start and count frames."""
        found: dict[int, PIL.Image.Image] = {}
        for index, frame in enumerate(self.frames_from(None)):
            if index in wanted:
                found[index] = self.to_image(frame)
            if len(found) == len(wanted):
                break
        return found

    def frames_from(self, start: int | None) -> "Iterator[av.VideoFrame]":
        """Yield frames in display order from the keyframe at or before `start` (a dts; None for the first frame).

        Damaged packets are skipped.
        """
        from av.error import FFmpegError

        if start is None:
            self.close()
            self.open()
        else:
            self.container.seek(start, stream=self.stream, backward=True, any_frame=False)
        for packet in self.packets():
            try:
                for frame in packet.decode():
                    self.count_work(frame.width * frame.height)
                    yield frame
            except FFmpegError:
                continue

    def count_work(self, pixels: int) -> None:
        """Count the pixels of a decoded frame. Raises `MediaError` if a small file takes very much decoding."""
        self.work_left -= max(pixels, SMALLEST_FRAME)
        if self.work_left < 0:
            raise MediaLimitError(
                f"{self.name} decodes to more pixels than a video of its size should, over "
                f"{self.limits.max_pixels_per_byte:,} per byte. Encode it again, sample fewer frames, or raise the "
                "limit with MediaLimits(max_pixels_per_byte=…).",
                "max_pixels_per_byte",
            )

    def packets(self) -> "Iterator[av.Packet[VideoStream]]":
        """Yield packets up to the end, or to where the file is truncated."""
        from av.error import FFmpegError

        try:
            yield from self.container.demux(self.stream)
        except (FFmpegError, IndexError):  # PyAV raises IndexError if a damaged file announces a new stream
            return

    def to_image(self, frame: "av.VideoFrame") -> "PIL.Image.Image":
        _check_frame(frame.width, frame.height, self.name, self.limits)
        return as_displayed(frame.to_image(), frame)


def _check_frame(width: int, height: int, name: str, limits: MediaLimits) -> None:
    check_pixels(width, height, name, limits)
    if width * height > MAX_FRAME_PIXELS:
        raise MediaLimitError(
            f"{name} has frames of {width:,}×{height:,} = {width * height:,} pixels; the limit is "
            f"{MAX_FRAME_PIXELS:,}. Scale the video down.",
            "MAX_FRAME_PIXELS",
        )


def check_frames(count: int, pixels: int, name: str, limits: MediaLimits) -> None:
    """Raise `MediaError` if the number of frames, or of pixels in all frames, is over the limits."""
    if count > limits.max_frames:
        raise MediaLimitError(
            f"{name}: {count:,} frames are more than the limit of {limits.max_frames:,}. "
            "Use fewer, or raise it with MediaLimits(max_frames=…).",
            "max_frames",
        )
    if pixels > limits.max_video_pixels:
        raise MediaLimitError(
            f"{name}: the sampled frames have {pixels:,} pixels in total, "
            f"more than the limit of {limits.max_video_pixels:,}. "
            "Use fewer or smaller frames, or raise it with MediaLimits(max_video_pixels=…).",
            "max_video_pixels",
        )
