"""The images and videos of a prompt. Creating one reads nothing; `load` reads and decodes it within limits."""

import hashlib
import operator
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

from vila_core.display.html import show
from vila_core.display.media import FRAMES, film_strip, image_html, video_html
from vila_core.errors import MediaError
from vila_core.input_files import Content, open_input
from vila_core.media.images import convert_array, convert_image, decode_image
from vila_core.media.limits import MediaLimits
from vila_core.media.signatures import HEAD_BYTES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Kind, kind_of
from vila_core.media.sources import ByteSource, describe, is_data_uri, is_url, open_source
from vila_core.media.video import VideoFrames, check_frames, decode_video, sample_indices

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from typing_extensions import TypeIs

    ImageSource = ByteSource | bytearray | memoryview | np.ndarray | PIL.Image.Image
    VideoSource = ImageSource | VideoFrames | Sequence["ImageSource | Image"]

MAX_FPS = 1_000_000
_DEFAULT_LIMITS = MediaLimits()


class Image:
    """One picture: a path, an https URL, a `data:` URI, the bytes of a file, an array, or a PIL image.

    An array is [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], with integers from 0 to 255. Files may be PNG, JPEG, WebP,
    GIF, BMP, TIFF, PPM or AVIF. EXIF orientation is applied to files, URLs and bytes, but not to arrays and PIL images.

    Raises:
        MediaError: the source has another type.
    """

    __slots__ = ("source",)

    def __init__(self, source: "ImageSource"):
        self.source = _check_source(source, "Image")

    def __repr__(self) -> str:
        return f"Image({_describe(self.source)})"

    def _repr_html_(self) -> str:
        return image_html(self)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, with EXIF orientation applied. Raises `MediaError` as `load` does."""
        return self.load().size

    @property
    def is_remote(self) -> bool:
        """Whether loading it needs the network."""
        return isinstance(self.source, str) and is_url(self.source)

    def show(self) -> None:
        """Show the picture: in the notebook if there is one, else in the system's viewer."""
        show(self.load())

    def load(self, limits: MediaLimits = _DEFAULT_LIMITS) -> "PIL.Image.Image":
        """Read and decode to RGB. Animations give their first frame, alpha is dropped, and 16 bits are scaled to 8.

        Raises:
            MediaError: the source is missing, empty, not an image, damaged, without pixels or over a limit.
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
    """One video: a path, https URL, `data:` URI, bytes of a file, folder of frames, array [T, H, W, 3], list of frames,
    or the `VideoFrames` that loading another gave.

    `frames` and `fps` override the model's settings. `frames` is the number of frames to sample; with `fps`, that many
    per second are sampled, at most `frames`.

    A folder contains image files, sorted by name with numbers by value. Folders and arrays are sampled by count. A
    list of frames (each anything that `Image` accepts) is used unchanged, unless `frames` is given. These sources have
    no timestamps; for them, `fps` is the rate at which the frames were recorded. `VideoFrames` are used unchanged, with
    their timestamps.

    Raises:
        MediaError: the source has another type, or `frames` or `fps` is out of range.
    """

    __slots__ = ("fps", "frames", "source")

    def __init__(self, source: "VideoSource", frames: int | None = None, fps: float | None = None):
        self.frames = None if frames is None else _check_frames_option(frames)
        self.fps = None if fps is None else _check_fps_option(fps)
        if isinstance(source, VideoFrames):
            if frames is not None or fps is not None:
                raise MediaError("Video got sampled frames, and frames or fps. Sample as you wish: Video(…).load(…).")
            self.source = source
        elif isinstance(source, (list, tuple)):
            self.source = tuple(frame if isinstance(frame, Image) else Image(frame) for frame in source)
        else:
            checked = _check_source(source, "Video")
            self.source = checked if _is_byte_source(checked) or _is_array(checked) else (Image(checked),)

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value}" for name, value in (("frames", self.frames), ("fps", self.fps)) if value is not None
        )
        return f"Video({self._describe()}{options})"

    def _repr_html_(self) -> str:
        return video_html(self)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first sampled frame in pixels. Raises `MediaError` as `load` does."""
        return self.load(1).frames[0].size

    @property
    def is_remote(self) -> bool:
        """Whether loading it needs the network."""
        frames = self.source if isinstance(self.source, tuple) else ()
        return any(frame.is_remote for frame in frames) or (isinstance(self.source, str) and is_url(self.source))

    def show(self) -> None:
        """Show a strip of frames: in the notebook if there is one, else in the system's viewer."""
        show(film_strip(self.load(FRAMES).frames))

    def load(self, num_frames: int, fps: float = 0.0, limits: MediaLimits = _DEFAULT_LIMITS) -> VideoFrames:
        """Read and decode the frames that `sample_indices` chooses. The video's own `frames` and `fps` take precedence.

        Raises:
            MediaError: the source is missing, empty, not a video, audio only, without a readable frame or over a limit.
        """
        num_frames = _check_frames_option(num_frames) if self.frames is None else self.frames
        source = self.source
        if isinstance(source, VideoFrames):
            check_frames(len(source.frames), _count_pixels(source), f"Video {self._describe()}", limits)
            return source
        if isinstance(source, tuple):
            indices = list(range(len(source))) if self.frames is None else self._spread(len(source), num_frames, limits)
            return self._load_frames(len(source), source.__getitem__, indices, limits)
        if _is_array(source):
            return self._load_array(source, num_frames, limits)
        if not isinstance(source, bytes) and _is_folder(source):
            frames = self._list_folder(Path(source))
            indices = self._spread(len(frames), num_frames, limits)
            return self._load_frames(len(frames), frames.__getitem__, indices, limits)
        rate = _check_fps_option(fps) if self.fps is None else self.fps
        with open_source(source, "Video", limits) as file:
            return decode_video(file, f"Video {self._describe()}", num_frames, rate, limits)

    def content_key(self) -> tuple[object, ...] | None:
        """Return what is equal for videos of the same content and options; None if the content may change unnoticed.

        A file is recognized by its path, device, inode, size and time of modification; bytes, by their digest.
        """
        source = self.source
        if isinstance(source, bytes):
            return hashlib.blake2b(source).digest(), self.frames, self.fps
        if not isinstance(source, str | os.PathLike):
            return None
        if isinstance(source, str) and is_data_uri(source):
            return hashlib.blake2b(source.encode(errors="replace")).digest(), self.frames, self.fps
        if isinstance(source, str) and is_url(source):
            return None
        try:
            state = os.stat(source)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(state.st_mode):
            return None
        identity = os.path.abspath(source), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
        return *identity, self.frames, self.fps

    def _spread(self, total: int, num_frames: int, limits: MediaLimits) -> list[int]:
        check_frames(num_frames, 0, f"Video {self._describe()}", limits)
        return sample_indices(total, num_frames, 0.0, 0.0) if total else []

    def _load_frames(
        self, total: int, frame_at: Callable[[int], Image], indices: list[int], limits: MediaLimits
    ) -> VideoFrames:
        """Load frames from a source of `total` frames without timestamps."""
        name = f"Video {self._describe()}"
        if not total:
            raise MediaError(f"{name} has no frames. Use at least one.")
        check_frames(len(indices), 0, name, limits)
        found: dict[int, PIL.Image.Image] = {}
        pixels = 0
        for index in sorted(set(indices)):
            found[index] = frame_at(index).load(limits)
            pixels += found[index].width * found[index].height
            check_frames(len(indices), pixels, name, limits)
        rate = self.fps or 0.0
        timestamps = [index / rate for index in indices] if rate else None
        return VideoFrames([found[i] for i in indices], indices, timestamps, total / rate if rate else None)

    def _load_array(self, array: "np.ndarray", num_frames: int, limits: MediaLimits) -> VideoFrames:
        name = f"Video {self._describe()}"
        if array.ndim != 4:
            raise MediaError(f"{name}: expected shape [T, H, W, 3]. For one picture use Image.")
        indices = self._spread(len(array), num_frames, limits)
        chosen = sorted(set(indices))
        check_frames(len(indices), len(chosen) * array.shape[1] * array.shape[2], name, limits)
        return self._load_frames(len(array), lambda index: Image(array[index]), indices, limits)

    def _list_folder(self, folder: Path) -> list[Image]:
        """Return the image files of a folder, except hidden ones, sorted by name with numbers by value."""
        try:
            names = [
                entry.name
                for entry in folder.iterdir()
                if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
            ]
        except OSError:
            raise MediaError(
                f"Video {self._describe()}: no permission to read the folder. Check its permissions."
            ) from None
        if not names:
            raise MediaError(
                f"Video {self._describe()} is a folder without image files ({' '.join(IMAGE_SUFFIXES)}). "
                "Use a folder of frames."
            )
        return [Image(folder / name) for name in sorted(names, key=_natural_order)]

    def _describe(self) -> str:
        if isinstance(self.source, tuple):
            return f"(a list of {len(self.source)} frames)"
        if isinstance(self.source, VideoFrames):
            return f"({len(self.source.frames)} sampled frames)"
        return _describe(self.source)


Media = Union[Image, Video]  # noqa: UP007 - works in both isinstance and annotations


def open_media(source: ByteSource) -> Media:
    """Return an `Image` or a `Video`: of files and bytes by their content, of URLs by their name.

    A folder is a video of frames. A file that is neither or cannot be read is an `Image`, unless its name is a video's;
    loading it says what is wrong.
    """
    if isinstance(source, bytes):
        return Video(source) if kind_of(source[:HEAD_BYTES]) == "Video" else Image(source)
    text = os.fsdecode(source)
    if is_data_uri(text):
        return Video(text) if text[:11].lower() == "data:video/" else Image(text)
    path = re.split("[?#]", text)[0] if is_url(text) else text
    kind = None if is_url(text) else _kind_of_file(text)
    if kind is None:
        kind = "Video" if path.lower().endswith(VIDEO_SUFFIXES) or _is_folder(text) else "Image"
    return Video(source) if kind == "Video" else Image(source)


def _kind_of_file(path: str) -> Kind | None:
    """Return the kind of a file by its content; None if it cannot be read or is neither."""
    try:
        with open_input(path, max_bytes=sys.maxsize, error=MediaError, content=Content.ANY) as file:
            return kind_of(file.read(HEAD_BYTES))
    except (OSError, MediaError):
        return None


def _is_byte_source(source: object) -> "TypeIs[ByteSource]":
    """Return whether a source is a path, URL, `data:` URI or bytes, not a picture in memory."""
    return isinstance(source, (str, os.PathLike, bytes))


def _is_array(source: object) -> "TypeIs[np.ndarray]":
    import numpy as np

    return isinstance(source, np.ndarray)


def _is_folder(source: str | os.PathLike[str]) -> bool:
    if isinstance(source, str) and (is_url(source) or is_data_uri(source)):
        return False
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):  # too long, or a null character; opening it reports the error
        return False


def _check_source(source: object, kind: str) -> "ByteSource | np.ndarray | PIL.Image.Image":
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if _is_byte_source(source):
        return source
    import PIL.Image  # cheap: the caller of an array or PIL image has imported it

    if _is_array(source) or isinstance(source, PIL.Image.Image):
        return source
    more = ", or a list of frames" if kind == "Video" else ""
    raise MediaError(
        f"{kind} got a {type(source).__name__}. "
        f"Expected a path, https URL, data: URI, bytes, numpy array or PIL image{more}. "
        "Convert a tensor to an array with .cpu().numpy()."
    )


def _describe(source: "ByteSource | np.ndarray | PIL.Image.Image") -> str:
    if _is_byte_source(source):
        return describe(source)
    if _is_array(source):
        return f"(array {list(source.shape)} of {source.dtype})"
    return f"(PIL {source.mode} {source.width}×{source.height})"


def _count_pixels(sampled: VideoFrames) -> int:
    """Return the number of pixels of all frames; repeated frames share theirs."""
    return sum(frame.width * frame.height for frame in {id(frame): frame for frame in sampled.frames}.values())


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
    except (TypeError, ValueError, OverflowError):
        rate = -1.0
    if not (rate == 0 or 1 / MAX_FPS <= rate <= MAX_FPS):
        raise MediaError(
            f"Video fps={fps!r}: expected frames per second from {1 / MAX_FPS:f} to {MAX_FPS:,}, "
            "or 0 to sample by count."
        )
    return rate
