"""Writes pictures: images as files of their suffix, videos as MP4, WebP or GIF."""

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vila_core.errors import OutputError
from vila_core.new_file import new_file, write_file

if TYPE_CHECKING:
    import PIL.Image

VIDEO_FPS = 4.0
"""Frames a second of a drawn video: the models do not say how fast it is, and this is watchable."""
SUFFIXES = {"image": (".png", ".jpg", ".jpeg", ".webp"), "video": (".mp4", ".webp", ".gif")}
"""The suffixes of files that each kind can be written to."""
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}


def output_paths(path: Path, kind: str, n: int) -> list[Path]:
    """Return where n pictures are written: `picture.png`, or `picture_0.png` … if there are several.

    Raises:
        OutputError: the suffix is unknown, or no file can be written there.
    """
    if path.suffix.lower() not in SUFFIXES[kind]:
        known = ", ".join(SUFFIXES[kind])
        example = path.stem or kind
        raise OutputError(
            f"'{path}' has no suffix of {kind} files. Use one of {known}, such as '{example}{SUFFIXES[kind][0]}'."
        )
    paths = numbered_paths(path, n)
    for one in paths:
        require_writable(one)
    return paths


def numbered_paths(path: Path, n: int) -> list[Path]:
    """Return the names of n pictures: `picture.png` alone, or `picture_0.png` …, in equally many digits."""
    width = len(str(n - 1))
    return [path] if n == 1 else [path.with_stem(f"{path.stem}_{number:0{width}}") for number in range(n)]


def write_picture(frames: "Sequence[PIL.Image.Image]", path: Path) -> None:
    """Write an image (one frame) or a video. Raises `OutputError` if it cannot be written; nothing is left then."""
    suffix = path.suffix.lower()
    if suffix == ".mp4":
        write_file(path, _mp4(frames))
        return
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}}.get(suffix, {})
    write_file(path, picture_bytes(frames, _FORMATS[suffix], options))


def picture_bytes(frames: "Sequence[PIL.Image.Image]", file_format: str, options: Mapping[str, Any]) -> bytes:
    """Return an image (one frame) or a video as a file of Pillow's `file_format`, with its `options` for that."""
    first, *others = frames
    animation: dict[str, Any] = {"append_images": others, "duration": round(1000 / VIDEO_FPS), "loop": 0}
    file = io.BytesIO()
    first.save(file, file_format, **options, **({"save_all": True, **animation} if others else {}))
    return file.getvalue()


def _mp4(frames: "Sequence[PIL.Image.Image]") -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(VIDEO_FPS))
        # MPEG-4 stores a color for every second pixel.
        stream.width, stream.height = (size + size % 2 for size in frames[0].size)
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file.getvalue()


class _WritableError(Exception):
    """Ends the writing of a file that was only tried."""


def require_writable(path: Path) -> None:
    """Raise `OutputError` if no file can be written to `path`, before anything is computed. An existing file stays."""
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder. Name a file, such as '{path / f'picture{path.suffix}'}'.")
    with suppress(_WritableError), new_file(path):
        raise _WritableError  # what was begun is removed
