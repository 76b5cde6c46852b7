"""Turning command-line arguments into prompts and settings."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vila_core.cli.words import is_text, with_dashes
from vila_core.errors import ConfigError, GenerationError, MediaError, PromptError
from vila_core.input_files import read_input_text

if TYPE_CHECKING:
    from vila_core.conversation import Part
    from vila_core.media import Media

MAX_SCHEMA_BYTES = 16 * 2**20
"""Far more than a schema may have; its own limits follow."""


def join_values(arguments: Sequence[str], *, several: Sequence[str], optional: Mapping[str, str]) -> list[str]:
    """Rewrite options to the form that typer reads: one value each, names with dashes.

    `--media a b` becomes `--media=a --media=b`, and `--explain` alone becomes `--explain=<its default>`.
    `--num_video_frames 8`, as VILA spells it, becomes `--num-video-frames 8`.
    """
    return list(_joined([with_dashes(word) for word in arguments], several, optional))


def _joined(arguments: Sequence[str], several: Sequence[str], optional: Mapping[str, str]) -> Iterator[str]:
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if word in optional:
            has_value = position < len(arguments) and not arguments[position].startswith("-")
            yield f"{word}={arguments[position] if has_value else optional[word]}"
            position += has_value
        elif word in several:
            first = position
            while position < len(arguments) and not arguments[position].startswith("-"):
                if word == "--media" and position > first and is_text(arguments[position]):
                    break  # `--media cat.png "What is it?"`
                yield f"{word}={arguments[position]}"
                position += 1
            if position == first:
                yield word  # typer reports that its value is missing
        else:
            yield word


def read_prompt(text: str | None, media: Sequence[str]) -> "list[Part]":
    """Return the prompt: media in order, then the text, which comes from standard input if it is "-" or piped.

    Raises:
        MediaError: a file does not exist.
        PromptError: there is no text and no media.
    """
    parts: list[Part] = [open_medium(source) for source in media]
    has_pipe = sys.stdin is not None and not sys.stdin.isatty()  # None: the caller closed it
    if text == "-" or (text is None and has_pipe):
        text = sys.stdin.read().strip() if sys.stdin is not None else ""
    if text:
        parts.append(text)
    if not parts:
        raise PromptError(
            "The prompt is empty. Give --text, --media, or text on standard input; `vila-infer --help` shows examples."
        )
    return parts


def open_medium(source: str) -> "Media":
    """Return the image or video at `source` without reading it. The prefix `image:` or `video:` gives the kind.

    Raises:
        MediaError: the file does not exist. Checked here, before the model is loaded, which takes long.
    """
    from vila_core.media import Image, Video, open_media
    from vila_core.media.sources import is_data_uri, is_url

    kind, colon, rest = source.partition(":")
    is_marked = bool(colon) and kind in ("image", "video")
    name = rest if is_marked else source
    if not (is_url(name) or is_data_uri(name) or os.path.exists(name)):  # False for an impossible file name
        raise MediaError(f"No file or folder '{name}'. Check the path (the current folder is '{Path.cwd()}').")
    if is_marked:
        return Image(name) if kind == "image" else Video(name)
    return open_media(name)


def read_overrides(assignments: Sequence[str], *, num_video_frames: int, video_max_tiles: int) -> dict[str, Any]:
    """Return the preprocessing settings to change: NAME=VALUE assignments, and the two flags unless they are -1.

    Raises:
        ConfigError: an assignment has no "=".
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set takes NAME=VALUE, got '{assignment}'. For example: --set max_tiles=6.")
        overrides[name.strip()] = tuple(value.split(",")) if name.strip() == "s2_scales" else value
    overrides |= {
        name: value
        for name, value in (("num_video_frames", num_video_frames), ("video_max_tiles", video_max_tiles))
        if value != -1
    }
    return overrides


def read_json_schema(path: Path) -> dict[str, Any]:
    """Return the JSON schema in the file at `path`.

    Raises:
        GenerationError: the file does not exist, is a Python file, or is not a JSON object.
    """
    if path.suffix == ".py":
        raise GenerationError(
            f"--json-schema '{path}': Python files are not executed. Save the schema as JSON: "
            'python -c "import json, your_module; '
            'print(json.dumps(your_module.Main.model_json_schema()))" > schema.json'
        )
    text = read_input_text(
        path, max_bytes=MAX_SCHEMA_BYTES, error=GenerationError, advice="Expected a file with a JSON schema."
    )
    try:
        schema: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GenerationError(f"--json-schema '{path}' is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise GenerationError(
            f"--json-schema '{path}' contains {type(schema).__name__}; expected a JSON object with a schema."
        )
    return cast("dict[str, Any]", schema)
