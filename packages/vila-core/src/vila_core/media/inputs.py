"""Images and videos of a prompt. Making one is cheap and reads nothing; `load` reads and decodes it, within limits."""

import math
import operator
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

from vila_core.errors import MediaError
from vila_core.media.images import convert_array, convert_image, decode_image
from vila_core.media.limits import MediaLimits
from vila_core.media.sources import ByteSource, describe, is_data_uri, is_url, open_source
from vila_core.media.video import VideoFrames, check_frames, decode_video, sample_indices

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from typing_extensions import TypeIs

    ImageSource = ByteSource | bytearray | memoryview | np.ndarray | PIL.Image.Image
    VideoSource = ImageSource | Sequence["ImageSource | Image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".ogv",
    ".wmv",
    ".3gp",
)
_DEFAULT_LIMITS = MediaLimits()


class Image:
    """One picture: a path, an https URL, a `data:` URI, a file's bytes, a uint8 array, or a PIL image.

    An array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Files may be PNG, JPEG, WebP, GIF, BMP, TIFF or PPM. EXIF orientation is
    honoured for files, URLs and bytes; arrays and PIL images are taken as they are. Raises MediaError for a source of another type.
    """

    __slots__ = ("source",)

    def __init__(self, source: "ImageSource"):
        self.source = _check_source(source, "Image")

    def __repr__(self) -> str:
        return f"Image({_describe(self.source)})"

    def load(self, limits: MediaLimits = _DEFAULT_LIMITS) -> "PIL.Image.Image":
        """Read and decode to an RGB picture. Of an animation, the first frame; alpha is dropped; 16 bits are scaled to 8.

        Raises MediaError: missing, empty, not an image, damaged, no pixels, over a limit (checked before decoding).
        """
        name = f"Image {_describe(self.source)}"
        if not _is_byte_source(self.source):
            return (
                convert_array(self.source, name, limits)
                if _is_array(self.source)
                else convert_image(self.source, name, limits)
            )
        with open_source(self.source, "Image", limits) as file:
            return decode_image(file, name, limits)


class Video:
    """One video: a path, an https URL, a `data:` URI, a file's bytes, a folder of frames, an array [T, H, W, 3], or a list of frames.

    `frames` is how many to take and `fps` how many a second (then `frames` is the most); given here, they override the model's own.
    A folder (its image files in the order of their names, numbers by value) and an array are sampled by count; a list of frames
    (anything that `Image` takes) is taken as it is, unless `frames` is given. These have no clock: for them `fps` is the rate at which
    they were taken, which gives timestamps. Raises MediaError for a source of another type, or `frames` and `fps` out of range.
    """

    __slots__ = ("fps", "frames", "source")

    def __init__(self, source: "VideoSource", frames: int | None = None, fps: float | None = None):
        self.frames = None if frames is None else _check_frames_option(frames)
        self.fps = None if fps is None else _check_fps_option(fps)
        if isinstance(source, (list, tuple)):
            self.source = tuple(frame if isinstance(frame, Image) else Image(frame) for frame in source)
        else:
            checked = _check_source(source, "Video")
            self.source = checked if _is_byte_source(checked) or _is_array(checked) else (Image(checked),)

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value}" for name, value in (("frames", self.frames), ("fps", self.fps)) if value is not None
        )
        return f"Video({self._describe()}{options})"

    def load(self, num_frames: int, fps: float = 0.0, limits: MediaLimits = _DEFAULT_LIMITS) -> VideoFrames:
        """Read and decode the frames that `sample_indices` chooses; `num_frames` and `fps` hold where the video was not given its own.

        Raises MediaError: missing, empty, not a video, only sound, no readable frame, over a limit.
        """
        num_frames = _check_frames_option(num_frames) if self.frames is None else self.frames
        source = self.source
        if isinstance(source, tuple):
            indices = list(range(len(source))) if self.frames is None else self._spread(len(source), num_frames, limits)
            return self._load_frames(source, indices, limits)
        if _is_array(source):
            frames = self._split_array(source)
            return self._load_frames(frames, self._spread(len(frames), num_frames, limits), limits)
        if not isinstance(source, bytes) and _is_folder(source):
            frames = self._list_folder(Path(source))
            return self._load_frames(frames, self._spread(len(frames), num_frames, limits), limits)
        rate = _check_fps_option(fps) if self.fps is None else self.fps
        with open_source(source, "Video", limits) as file:
            return decode_video(file, f"Video {self._describe()}", num_frames, rate, limits)

    def _spread(self, total: int, num_frames: int, limits: MediaLimits) -> list[int]:
        check_frames(num_frames, 0, f"Video {self._describe()}", limits)
        return sample_indices(total, num_frames, 0.0, 0.0) if total else []

    def _load_frames(self, images: Sequence[Image], indices: list[int], limits: MediaLimits) -> VideoFrames:
        """Frames of a source without a clock."""
        name = f"Video {self._describe()}"
        if not images:
            raise MediaError(f"{name} has no frames. Give at least one.")
        check_frames(len(indices), 0, name, limits)
        found: dict[int, PIL.Image.Image] = {}
        pixels = 0
        for index in sorted(set(indices)):
            found[index] = images[index].load(limits)
            pixels += found[index].width * found[index].height
            check_frames(len(indices), pixels, name, limits)
        rate = self.fps or 0.0
        timestamps = [index / rate for index in indices] if rate else None
        return VideoFrames([found[i] for i in indices], indices, timestamps, len(images) / rate if rate else None)

    def _split_array(self, array: "np.ndarray") -> list[Image]:
        if array.ndim != 4:
            raise MediaError(f"Video {self._describe()}: expected shape [T, H, W, 3]. For one picture use Image.")
        return [Image(frame) for frame in array]

    def _list_folder(self, folder: Path) -> list[Image]:
        """The image files of a folder, not hidden, ordered by name: digits count by value, so frame10 follows frame9."""
        try:
            names = [
                entry.name
                for entry in folder.iterdir()
                if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
            ]
        except OSError as error:
            raise MediaError(
                f"Video {self._describe()}: the folder may not be read by this user. Check its permissions."
            ) from error
        if not names:
            raise MediaError(
                f"Video {self._describe()} is a folder without image files ({' '.join(IMAGE_SUFFIXES)}). Give a folder of frames."
            )
        return [Image(folder / name) for name in sorted(names, key=_natural_order)]

    def _describe(self) -> str:
        if isinstance(self.source, tuple):
            return f"(a list of {len(self.source)} frames)"
        return _describe(self.source)


Media = Union[Image, Video]  # noqa: UP007 - a name that isinstance and annotations both take


def open_media(source: str | os.PathLike[str]) -> Media:
    """Make the `Image` or `Video` that a path, URL or `data:` URI names: a folder or a video suffix is a Video, anything else an Image."""
    text = os.fspath(source)
    if is_data_uri(text):
        return Video(text) if text[:11].lower() == "data:video/" else Image(text)
    path = re.split("[?#]", text)[0] if is_url(text) else text
    return Video(source) if path.lower().endswith(VIDEO_SUFFIXES) or _is_folder(text) else Image(source)


def _is_byte_source(source: object) -> "TypeIs[ByteSource]":
    """Say whether a source is a path, URL, `data:` URI or bytes (and not a picture in memory)."""
    return isinstance(source, (str, os.PathLike, bytes))


def _is_array(source: object) -> "TypeIs[np.ndarray]":
    import numpy as np

    return isinstance(source, np.ndarray)


def _is_folder(source: str | os.PathLike[str]) -> bool:
    if isinstance(source, str) and (is_url(source) or is_data_uri(source)):
        return False
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):  # too long, or a null character: opening it tells
        return False


def _check_source(source: object, kind: str) -> "ByteSource | np.ndarray | PIL.Image.Image":
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if _is_byte_source(source):
        return source
    import PIL.Image  # cheap: who holds an array or a PIL image has imported these

    if _is_array(source) or isinstance(source, PIL.Image.Image):
        return source
    more = ", or a list of frames" if kind == "Video" else ""
    raise MediaError(
        f"{kind} got a {type(source).__name__}. Expected a path, https URL, data: URI, bytes, numpy array or PIL image{more}. "
        "A tensor becomes an array with .cpu().numpy()."
    )


def _describe(source: "ByteSource | np.ndarray | PIL.Image.Image") -> str:
    if _is_byte_source(source):
        return describe(source)
    if _is_array(source):
        return f"(array {list(source.shape)} of {source.dtype})"
    return f"(PIL {source.mode} {source.width}×{source.height})"


def _natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    return [
        (int(part) if part.isdecimal() else -1, part if not part.isdecimal() else "")
        for part in re.split("([0-9]+)", name)
    ], name


def _check_frames_option(frames: int) -> int:
    try:
        count = operator.index(frames)
    except TypeError:
        count = 0
    if count < 1:
        raise MediaError(f"Video frames={frames!r}: expected a whole number of at least 1.")
    return count


def _check_fps_option(fps: float) -> float:
    try:
        rate = float(fps)
    except (TypeError, ValueError):
        rate = -1.0
    if not math.isfinite(rate) or rate < 0:
        raise MediaError(f"Video fps={fps!r}: expected frames per second, above 0 (or 0 to go by count).")
    return rate
