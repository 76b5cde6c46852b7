"""`vila-infer`: ask a model about images and videos."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from vila_core.cli.arguments import join_values, read_prompt
from vila_core.cli.infer_options import AnswerOptions, MediaOptions, ModelOptions, OutputOptions, PromptOptions
from vila_core.cli.option_groups import with_option_groups
from vila_core.cli.options import Debug, Plugin
from vila_core.cli.progress import status
from vila_core.cli.run import run
from vila_core.errors import ConfigError
from vila_core.plugins.loader import load_plugin_file

if TYPE_CHECKING:
    from vila_core.conversation import Part
    from vila_core.runtime import GenerationSettings, Vila

HELP = """
Ask a VILA model about images and videos. Without --model-path, the small embedded model answers: no network, no GPU.

[bold]Examples[/bold]

vila-infer --media photo.jpg --text "What is in this picture?"

vila-infer -m Efficient-Large-Model/NVILA-8B --media walk.mp4 --num-video-frames 16 --text "Describe the video."

vila-infer --media before.png after.png --text "What changed?" --json

git diff | vila-infer --media screen.png --json-schema answer.json  [dim]the text comes from the pipe[/dim]

vila-infer --media chart.png --text "Which bar is highest?" --explain  [dim]shows the tiles and the token budget[/dim]
"""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(help=HELP)
@with_option_groups
def infer(
    prompt: PromptOptions,
    model: ModelOptions,
    media: MediaOptions,
    answer: AnswerOptions,
    output: OutputOptions,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Ask a VILA model about images and videos."""
    if output.as_json and output.stream:
        raise ConfigError("Got both --json and --stream, but JSON is printed only once it is complete. Drop one.")
    for path in plugin or ():
        load_plugin_file(path)
    parts = read_prompt(prompt.text, prompt.media or ())
    overrides = media.overrides()
    settings = answer.settings()  # validate before loading the model, which takes long
    with status(f"Loading {model.label} …"):
        loaded = model.load(overrides)
    if output.explain is not None:
        _explain(loaded, parts, output.explain)
    stream = sys.stdout.isatty() if output.stream is None else output.stream
    _answer(loaded, parts, settings, as_json=output.as_json, stream=stream)


def _answer(
    model: "Vila", prompt: "Sequence[Part]", settings: "GenerationSettings", *, as_json: bool, stream: bool
) -> None:
    if as_json:
        completion = model.complete(prompt, **settings)
        record = {"text": completion.text, **asdict(completion)}
        del record["parts"]  # the text, as long as there are no other parts
        typer.echo(json.dumps(record, ensure_ascii=False, indent=2))
    elif stream:
        for piece in strip_pieces(model.stream(prompt, **settings)):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()
    else:
        with status("Answering …"):
            answer = model.complete(prompt, **settings).text
        typer.echo(answer)


def strip_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """Strip whitespace around a streamed text, as `complete` does for the complete text."""
    held, started = "", False
    for piece in pieces:
        text = held + piece
        if not started:
            text = text.lstrip()
        body = text.rstrip()
        held = text[len(body) :]
        if body:
            started = True
            yield body


def _explain(model: "Vila", prompt: "Sequence[Part]", path: Path) -> None:
    from rich.console import Console

    from vila_core.cli.explain import print_explanation, save_explanation

    inspection = model.inspect(prompt)
    console = Console(stderr=True)
    print_explanation(inspection, console)
    if inspection.media:
        save_explanation(inspection, path)
        console.print(f"Drew the tiles to [bold]{path}[/bold]\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `vila-infer` with `arguments` (default: those of the process) and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    run(
        app, "vila-infer", join_values(given, several=("--media", "--stop"), optional={"--explain": "vila-explain.png"})
    )
