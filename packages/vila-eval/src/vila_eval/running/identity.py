"""Digests that decide whether an answer can be reused: of model files, of media, and of a sample's inputs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from vila_core.checkpoint.embedded import embedded_model
from vila_core.checkpoint.fingerprints import file_fingerprint
from vila_core.checkpoint.hub import UNWANTED
from vila_core.checkpoint.opening import find_folder
from vila_core.errors import ConfigError, MediaError
from vila_core.file_names import require_file_name
from vila_core.input_files import open_regular_file
from vila_core.media import IMAGE_SUFFIXES, Image, Video, VideoFrames
from vila_core.media.limits import MediaLimits
from vila_core.media.sources import is_data_uri, is_url, open_source
from vila_eval.records.schema import ModelIdentity, PromptPart
from vila_eval.texts import escape_surrogates, one_line

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

    from vila_core.media.sources import ByteSource
    from vila_eval.options import ModelOptions, Planned
    from vila_eval.records.schema import RunSettings
    from vila_eval.task import Part, Task

    Source = ByteSource | np.ndarray | PIL.Image.Image | VideoFrames | tuple[Image, ...]

NOT_THE_MODEL = (*UNWANTED, "*.md", "LICENSE*", "NOTICE*", "MODEL_LICENSE*", "events.out.tfevents*")
"""Files of a checkpoint that do not change its answers."""


def model_name(model: ModelOptions) -> str:
    """Return the name of the model's results folder: as given, or the last part of the adapter's or model's path."""
    if model.name is not None:
        return require_file_name(model.name, "--model-name")
    path = model.lora or model.path
    if path is None:
        return embedded_model().name
    try:
        name = Path(path).expanduser().resolve().name
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, no home folder, a null character
        raise ConfigError(f"The model's path {_shown(path)} cannot be resolved: {one_line(str(error), 200)}.") from None
    return require_file_name(name, f"The last part of the model's path {_shown(path)}")


def check_task_folder(planned: Planned) -> None:
    """Raise `ConfigError` if the files of a task would be written outside of its own folder."""
    for part in planned.folder.split("/"):
        require_file_name(part, f"A part of the task's name {_shown(planned.folder)}")
    if planned.task.submission is not None:
        require_file_name(planned.task.submission.filename, f"The submission file of task '{planned.task.name}'")


def _shown(name: str) -> str:
    return repr(one_line(name, 60))


def model_identity(model: ModelOptions) -> ModelIdentity:
    """Return the identity of the model. A model on the hub is downloaded if it is not cached.

    Raises:
        CheckpointError: there is no such model or adapter.
    """
    source = embedded_model().name if model.path is None else model.path
    folders = [
        embedded_model()
        if model.path is None
        else find_folder(model.path, revision=model.revision, offline=model.offline)
    ]
    if model.lora is not None:
        source = f"{source} + {model.lora}"
        folders.append(find_folder(model.lora, offline=model.offline))
    digest = hashlib.sha256(repr([folder_digest(folder) for folder in folders]).encode()).hexdigest()
    return ModelIdentity(name=model_name(model), source=source, digest=digest)


def folder_digest(folder: Path) -> str:
    """Identify a checkpoint by its files, wherever the folder is: SHA-256 over their names, sizes and contents.

    Of large files (weights), only a part is read: see `file_fingerprint`. Hidden files, code, texts and training logs
    are ignored.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_model_files(folder)):
        digest.update(repr((name, file_fingerprint(path))).encode())
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the files that make a model, also of those in linked folders."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            path = Path(place, file)
            if path.is_file() and not any(fnmatch(file, pattern) for pattern in (".*", *NOT_THE_MODEL)):
                yield path.relative_to(folder).as_posix(), path


def describe_prompt(prompt: Sequence[Part | None]) -> tuple[PromptPart, ...]:
    """Return a prompt for records, with media replaced by their digests."""
    return tuple(_describe(part) for part in prompt if part is not None)


def _describe(part: Part) -> PromptPart:
    if isinstance(part, str):
        return PromptPart(kind="text", text=part)
    file = _file_name(part.source)
    if isinstance(part, Image):
        return PromptPart(kind="image", digest=media_digest(part), file=file)
    return PromptPart(kind="video", digest=media_digest(part), file=file, frames=part.frames)


def _file_name(source: Source) -> str | None:
    if not isinstance(source, str | Path) or is_data_uri(str(source)):
        return None
    return escape_surrogates(Path(source).name)


def media_digest(medium: Image | Video) -> str | None:
    """Return the SHA-256 of a medium's bytes as they are stored, or of its pixels where it is in memory.

    Of a list or folder of frames: of all of them. Of a URL: of the address. None where it cannot be read.
    """
    try:
        return _source_digest(medium.source, "Image" if isinstance(medium, Image) else "Video")
    except (MediaError, OSError, ValueError):  # ValueError: a null character in the path
        return None


def _source_digest(source: Source, kind: str) -> str:
    if isinstance(source, tuple):
        return _joined(_source_digest(frame.source, "Image") for frame in source)
    if isinstance(source, VideoFrames):
        return _joined(_pixels_digest(frame) for frame in source.frames)
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, str) and is_url(source):
        return hashlib.sha256(source.encode(errors="backslashreplace")).hexdigest()
    if isinstance(source, str) and is_data_uri(source):
        with open_source(source, "Image" if kind == "Image" else "Video", MediaLimits()) as file:
            return hashlib.sha256(file.read()).hexdigest()
    if not isinstance(source, str | os.PathLike):
        return _pixels_digest(source)
    path = Path(source).absolute()
    if kind == "Video" and path.is_dir():
        frames = sorted(frame for frame in path.iterdir() if frame.suffix.lower() in IMAGE_SUFFIXES)
        return _joined(f"{frame.name} {_file_digest(frame)}" for frame in frames)
    return _file_digest(path)


def _pixels_digest(source: np.ndarray | PIL.Image.Image) -> str:
    import numpy as np
    import PIL.Image

    stated = (source.mode, source.size) if isinstance(source, PIL.Image.Image) else (str(source.dtype), source.shape)
    pixels = source.tobytes() if isinstance(source, PIL.Image.Image) else np.ascontiguousarray(source).tobytes()
    return hashlib.sha256(repr(stated).encode() + pixels).hexdigest()


def _joined(digests: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _whole_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=65536)
def _whole_digest(path: Path, size: int, modified_ns: int) -> str:
    if size > MediaLimits().max_video_bytes:
        raise MediaError(f"'{path}' is larger than the limit of media.")
    digest = hashlib.sha256()
    with open_regular_file(path)[0] as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sample_key(model_digest: str, task: Task, settings: RunSettings, prompt: Sequence[PromptPart]) -> str:
    """Return the SHA-256 of everything that determines one answer: an answer with another key is not used again.

    That is: the model's files, the task and its version, the prompt's texts, media and frames, and generation settings.
    Not among them: file names and places, batch size, workers and `--limit`.
    """
    facts: Mapping[str, object] = {
        "model": model_digest,
        "task": [task.name, task.version],
        "settings": settings.model_dump(mode="json", exclude={"limit"}),
        "prompt": [[part.kind, part.text, part.digest, part.frames] for part in prompt],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
