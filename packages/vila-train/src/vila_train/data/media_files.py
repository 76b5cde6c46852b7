"""The media that a dataset names. What a dataset says is not trusted: its media lie in its own folder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from vila_core.errors import MediaError, shown
from vila_core.media import IMAGE_SUFFIXES, Image, Video
from vila_core.media.sources import is_data_uri, is_url
from vila_train.data.conversations import SampleError

_FILE_URI = "file://"
MAX_MEDIA = 4096
"""Images and videos of one sample."""


@dataclass(frozen=True)
class MediaFolder:
    """Turns what a sample names as an image or video into one.

    That may be a file in `folder` (its path relative to it, or absolute), the bytes of a file, a `data:` URI, or a
    mapping with "bytes" or "path", as tables have it. Media are not decoded yet, but their files have to exist.

    Attributes:
        folder: of the media; None if the dataset has only embedded ones.
        suffix: added to names that have none of a picture or video, such as ".mp4"; empty for none.
    """

    folder: Path | None
    suffix: str = ""

    def images(self, value: object) -> list[Image]:
        """Return the images that `value` names: one or a list of them; None is none. Raises `SampleError`."""
        return [Image(self._source(one, "image")) for one in _as_list(value)]

    def videos(self, value: object, frames: object = None, fps: object = None) -> list[Video]:
        """Return the videos that `value` names. A list of picture files is one video, also within a list of videos.

        Args:
            value: a video or a list of them; None is none.
            frames: how many frames to sample; None: as the model does.
            fps: frames to sample per second; None: as the model does.

        Raises:
            SampleError: a file is missing or refused, or `frames` or `fps` is out of range.
        """
        values = _as_list(value)
        if _are_frames(values):
            return [self._video(values, frames, fps)]
        return [self._video(one, frames, fps) for one in values]

    def _video(self, value: object, frames: object, fps: object) -> Video:
        source = self.images(value) if isinstance(value, list | tuple) else self._source(value, "video")
        try:
            return Video(source, cast("int | None", frames), cast("float | None", fps))
        except MediaError as error:  # of the options, or without frames
            raise SampleError(str(error), "frames or fps out of range") from None

    def within(self, medium: Image | Video) -> Image | Video:
        """Return a medium made from a sample's own words, with its files looked up in the folder.

        Raises `SampleError` as `images` does.
        """
        if isinstance(medium, Image):
            return Image(self._source(medium.source, "image"))
        source: object = medium.source
        if isinstance(source, tuple):
            frames = [self.within(frame) for frame in cast("tuple[Image, ...]", source)]
            return Video(cast("list[Image]", frames), medium.frames, medium.fps)
        return Video(self._source(source, "video"), medium.frames, medium.fps)

    def _source(self, value: object, kind: str) -> str | bytes:
        fields = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}
        stated = fields.get("bytes") or fields.get("path") if fields else value
        if isinstance(stated, bytes):
            return stated
        name = os.fspath(cast("os.PathLike[str]", stated)) if isinstance(stated, os.PathLike) else stated
        if not isinstance(name, str):
            raise SampleError(f"its {kind} is {shown(value)}; expected the name of a file.", "media name is not a text")
        if name.startswith(_FILE_URI):
            name = unquote(name.removeprefix(_FILE_URI))
        return name if is_data_uri(name) else str(self._file(name, kind))

    def _file(self, name: str, kind: str) -> Path:
        """Return the file called `name`. Raises `SampleError` if it is missing, or outside the folder."""
        if is_url(name):
            raise SampleError(
                f"its {kind} is the URL {shown(name)}; training does not download media. Save it to the media folder.",
                "media is a URL",
            )
        if not name.strip() or "\0" in name:
            raise SampleError(f"its {kind} is {shown(name)}; expected the name of a file.", "media name is impossible")
        if self.folder is None:
            raise SampleError(
                f"its {kind} {shown(name)} is a file, but its dataset has no media folder. "
                "Set 'media' in the registry.",
                "media folder unknown",
            )
        folder = os.path.abspath(self.folder)
        path = os.path.normpath(os.path.join(folder, name))
        if path != folder and not path.startswith(os.path.join(folder, "")):
            raise SampleError(
                f"its {kind} {shown(name)} lies outside the media folder '{folder}', so it is not opened. Define the "
                "dataset in a registry, and set its 'media' to a folder that holds the file.",
                "media outside its folder",
            )
        for candidate in (path, path + self.suffix) if self.suffix else (path,):
            if path != folder and _exists(candidate):
                return Path(candidate)
        hint = " Names with backslashes are those of another system." if "\\" in name else ""
        raise SampleError(f"its {kind} {shown(path, 300)} is missing.{hint}", "missing media file")


def _are_frames(values: Sequence[object]) -> bool:
    """Return whether a list names the frames of one video: several picture files."""
    return len(values) > 1 and all(isinstance(one, str) and one.lower().endswith(IMAGE_SUFFIXES) for one in values)


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (OSError, ValueError):  # ValueError: a lone surrogate
        return False
    return True


def _as_list(value: object) -> Sequence[object]:
    if value is None:
        return ()
    values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else (value,)
    if len(values) > MAX_MEDIA:
        raise SampleError(f"it has {len(values):,} media; the limit is {MAX_MEDIA:,}.", "too many media")
    return values
