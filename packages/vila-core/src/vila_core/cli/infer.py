"""`vila-infer`: ask a model about images and videos."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

import vila_core
from vila_core.cli.arguments import join_values
from vila_core.cli.infer_options import (
    AnswerOptions,
    DrawOptions,
    MediaOptions,
    ModelOptions,
    OutputOptions,
    PromptOptions,
)
from vila_core.cli.option_groups import options_given, with_option_groups
from vila_core.cli.options import Debug, Plugin, load_plugin_files, version_option
from vila_core.cli.progress import show_phases
from vila_core.cli.run import run
from vila_core.cli.terminal import echo_answer
from vila_core.cli.words import with_known_names
from vila_core.errors import ConfigError
from vila_core.strict_json import to_strict_json

if TYPE_CHECKING:
    from vila_core.conversation import Part, Prompt
    from vila_core.runtime import GenerationSettings, Vila

HELP = """
Ask a VILA model about images and videos. Without a model, the small embedded one answers: no network, no GPU, but it
only knows drawn shapes.

[bold]Examples[/bold]

vila-infer examples/media/scene.png "What is in the picture?"

vila-infer -m Efficient-Large-Model/NVILA-8B walk.mp4 "Describe it." -nf 16

vila-infer --media before.png after.png --text "What changed?" --json

echo "Read the text." | vila-infer page.png --json-schema answer.json

vila-infer -m vila-tiny-u "A red circle (top)." --generate image --out circle.png

vila-infer chart.png "Which bar is highest?" --explain [dim]# draws the tiles[/dim]
"""


class InferCommand(TyperCommand):
    """A command that also reads options as VILA and other programs spell them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite the arguments to the form that typer reads, then parse them."""
        optional = {"--explain": "vila-explain.png"}
        words = join_values(list(with_known_names(args)), several=("--media", "--stop"), optional=optional)
        return super().parse_args(ctx, words)


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command("infer", cls=InferCommand, help=HELP)
@with_option_groups
def infer(
    context: typer.Context,
    prompt: PromptOptions,
    model: ModelOptions,
    media: MediaOptions,
    answer: AnswerOptions,
    drawing: DrawOptions,
    output: OutputOptions,
    plugin: Plugin = None,
    version: Annotated[bool, version_option(vila_core.__version__)] = False,
    debug: Debug = False,
) -> None:
    """Ask a VILA model about images and videos."""
    if output.as_json and output.stream:
        raise ConfigError("Got both --json and --stream, but JSON is printed only once it is complete. Drop one.")
    load_plugin_files(plugin)
    parts = prompt.read()
    if drawing.generate is not None or drawing.out is not None:
        from vila_core.cli.draw import draw  # not above: it imports pydantic, which is slow

        draw(parts, model, drawing, answer, output, context)
        return
    for option in options_given(context, DrawOptions).values():
        raise ConfigError(f"{option} is for drawing: add --generate image (or video) and --out FILE, or leave it out.")
    overrides = media.overrides()
    settings = answer.settings()  # validate before loading the model, which takes long
    with show_phases(f"Loading {model.label}") as show:
        loaded = model.load(overrides, show)
    if output.explain is not None:
        _explain(loaded, parts, output.explain)
    stream = sys.stdout.isatty() if output.stream is None else output.stream
    _answer(loaded, parts, settings, as_json=output.as_json, stream=stream)


def _answer(
    model: "Vila", prompt: "Sequence[Part]", settings: "GenerationSettings", *, as_json: bool, stream: bool
) -> None:
    if as_json:
        from vila_core.runtime import text_of  # not above: it imports torch, which is slow

        with show_phases("Answering") as model.on_phase:
            completion = model.complete(prompt, **settings)
        record = {"text": text_of(completion), **asdict(completion)}
        del record["parts"]  # the text, as long as there are no other parts
        typer.echo(to_strict_json(record, ensure_ascii=False, indent=2))
    elif stream:
        print_stream(model, prompt, settings)
    else:
        with show_phases("Answering") as model.on_phase:
            answer = model.generate(prompt, **settings)
        echo_answer(answer)


def print_stream(model: "Vila", prompt: "Prompt", settings: "GenerationSettings") -> str:
    """Print an answer piece by piece and return it. Until the first piece, a spinner shows what runs."""
    with show_phases("Answering") as model.on_phase:
        pieces = strip_pieces(model.stream(prompt, **settings))
        answer = next(pieces, "")
    try:
        echo_answer(answer, newline=False)
        for piece in pieces:
            echo_answer(piece, newline=False)
            answer += piece
    finally:
        typer.echo()  # also after Ctrl-C, so that the next message has its own line
    return answer


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
    run(app, "vila-infer", arguments)
