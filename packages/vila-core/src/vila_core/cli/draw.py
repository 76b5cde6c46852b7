"""`vila-infer --generate`: draws images and videos to files."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from vila_core.cli.infer_options import AnswerOptions, MediaOptions
from vila_core.cli.option_groups import options_given
from vila_core.cli.progress import open_progress, show_phases
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.image_generation import checked_count
from vila_core.errors import ConfigError, PromptError
from vila_core.generation.files import output_paths, write_picture
from vila_core.generation.prompts import checked_text, require_kind

if TYPE_CHECKING:
    from pathlib import Path

    import PIL.Image

    from vila_core.cli.infer_options import DrawOptions, ModelOptions, OutputOptions
    from vila_core.conversation import Part
    from vila_core.generation.pictures import DrawingProgress
    from vila_core.runtime import Vila

SAMPLING = ("temperature", "top_p", "top_k", "seed")
"""Options of answers that drawing has, too, with defaults of its own."""


def draw(
    parts: "Sequence[Part]",
    model: "ModelOptions",
    drawing: "DrawOptions",
    answer: AnswerOptions,
    output: "OutputOptions",
    context: typer.Context,
) -> None:
    """Draw what the text says, and write it to files. Everything that can be wrong is found before drawing begins.

    Raises:
        ConfigError, PromptError, GenerationError, OutputError: an option is missing or out of range.
    """
    if drawing.generate is None or drawing.out is None:
        raise ConfigError("Drawing needs both --generate image (or video) and --out FILE.")
    if output.explain is not None:
        raise ConfigError("--explain shows what the model sees of a question; it does not go with --generate.")
    kind, text = drawing.generate.value, _text(parts)
    sampling = _sampling(answer, context)
    settings = {"guidance": drawing.guidance, "negative_prompt": drawing.negative_prompt, **sampling}
    DrawingConfig.model_validate(settings)
    paths = output_paths(drawing.out, kind, checked_count(drawing.count))
    previews = [] if drawing.preview is None else output_paths(drawing.preview, "image", 1)
    with show_phases(f"Loading {model.label}") as show:
        loaded = model.load({}, show)
    require_kind(loaded.network.generation_head, kind, loaded.name)
    for path, frames in zip(paths, _frames(loaded, kind, text, len(paths), settings, previews), strict=True):
        write_picture(frames, path)
        if not output.as_json:
            typer.echo(str(path))
    if output.as_json:
        record = {"kind": kind, "prompt": text, "files": [str(path) for path in paths], **settings}
        typer.echo(json.dumps(record, ensure_ascii=False, indent=2))


def _text(parts: "Sequence[Part]") -> str:
    if not all(isinstance(part, str) for part in parts):
        raise PromptError("Pictures are drawn from a text alone. Leave out --media.")
    return checked_text(" ".join(str(part) for part in parts))


def _sampling(answer: AnswerOptions, context: typer.Context) -> dict[str, Any]:
    """Return the sampling options on the command line; the others have the defaults of drawing.

    Raises:
        ConfigError: there are other options of answers or media, which would have no effect.
    """
    given = options_given(context, AnswerOptions)
    for name, option in {**given, **options_given(context, MediaOptions)}.items():
        if name not in SAMPLING:
            raise ConfigError(f"{option} is for answers, and does not go with --generate. Leave it out.")
    return {name: getattr(answer, name) for name in given}


def _frames(
    model: "Vila", kind: str, text: str, n: int, settings: Mapping[str, Any], previews: "Sequence[Path]"
) -> "list[list[PIL.Image.Image]]":
    """Draw, and show how far it is."""
    from vila_core.display.media import film_strip

    with open_progress("positions") as progress:
        done = 0

        def report(state: "DrawingProgress") -> None:
            nonlocal done
            if not done:
                progress.start(f"Drawing {n} {kind}{'s'[: n != 1]}", state.total)
            progress.advance(state.done - done)
            done = state.done
            for path in previews:
                write_picture([film_strip(state.preview())], path)

        if kind == "image":
            return [[image] for image in model.generate_image(text, n, progress=report, **settings)]
        return [video.load(1, 0).frames for video in model.generate_video(text, n, progress=report, **settings)]
