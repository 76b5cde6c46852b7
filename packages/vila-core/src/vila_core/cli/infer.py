"""`vila-infer`: ask a model about images and videos. Flags become a prompt, overrides and settings; then one library call."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import vila_core
from vila_core.cli.arguments import join_values, read_json_schema, read_overrides, read_prompt
from vila_core.cli.options import Debug
from vila_core.cli.run import run
from vila_core.errors import ConfigError
from vila_core.plugins.loader import load_plugin_file

if TYPE_CHECKING:
    from vila_core.prompt import Part
    from vila_core.runtime import GenerationSettings, Vila

HELP = """
Ask a VILA model about images and videos. Without --model-path the small embedded model answers: no network, no GPU.

[bold]Examples[/bold]

vila-infer --media photo.jpg --text "What is in this picture?"

vila-infer -m Efficient-Large-Model/NVILA-8B --media walk.mp4 --num-video-frames 16 --text "Describe the video."

vila-infer --media before.png after.png --text "What changed?" --json

git diff | vila-infer --media screen.png --json-schema answer.json  [dim]the text comes from the pipe[/dim]

vila-infer --media chart.png --text "Which bar is highest?" --explain  [dim]shows the tiles and the token budget[/dim]
"""

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(help=HELP)
def infer(
    text: Annotated[
        str | None,
        typer.Option("--text", help="The question. '-' reads it from standard input.", rich_help_panel="Prompt"),
    ] = None,
    media: Annotated[
        list[str] | None,
        typer.Option(
            "--media",
            metavar="FILE…",
            help="Images, videos, folders of frames or https URLs, in order; they come before the text. "
            "Where the name does not tell, write image:SOURCE or video:SOURCE.",
            rich_help_panel="Prompt",
        ),
    ] = None,
    model_path: Annotated[
        str | None,
        typer.Option(
            "--model-path",
            "-m",
            metavar="MODEL",
            help="Folder or hub id; without it, the embedded model.",
            rich_help_panel="Model",
        ),
    ] = None,
    conv_mode: Annotated[
        str,
        typer.Option(
            "--conv-mode",
            "-c",
            metavar="NAME",
            help="Chat template; auto is the checkpoint's own.",
            rich_help_panel="Model",
        ),
    ] = "auto",
    lora_path: Annotated[
        str | None,
        typer.Option(
            "--lora-path",
            "-l",
            metavar="FOLDER",
            help="A LoRA adapter, merged into the model.",
            rich_help_panel="Model",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel="Model")
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", metavar="", help="Use what is in the hub's cache only.", rich_help_panel="Model"),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Model")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel="Model")] = "auto",
    num_video_frames: Annotated[
        int,
        typer.Option(
            "--num-video-frames", "-nf", help="Frames of each video; -1: the model's own.", rich_help_panel="Media"
        ),
    ] = -1,
    video_max_tiles: Annotated[
        int,
        typer.Option(
            "--video-max-tiles", "-vm", help="Tiles of each frame; -1: the model's own.", rich_help_panel="Media"
        ),
    ] = -1,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other field of the preprocessing, such as max_tiles=6.",
            rich_help_panel="Media",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.", rich_help_panel="Answer")
    ] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel="Answer")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus sampling.", rich_help_panel="Answer")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="0 is off.", rich_help_panel="Answer")] = 0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="1 is off.", rich_help_panel="Answer")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel="Answer")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT…", help="End the answer before any of these.", rich_help_panel="Answer"),
    ] = None,
    json_mode: Annotated[
        bool, typer.Option("--json-mode", metavar="", help="The answer is JSON.", rich_help_panel="Answer")
    ] = False,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            "--json-schema",
            metavar="FILE",
            help="The answer is JSON that follows this schema.",
            rich_help_panel="Answer",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="Print text, token counts and timings as JSON.", rich_help_panel="Output"
        ),
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            metavar="",
            help="Print the answer as it is written; default on a terminal.",
            rich_help_panel="Output",
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="[PNG]",
            help="Show what the model sees: prompt, token budget, and a PNG of the tiles (vila-explain.png).",
            rich_help_panel="Output",
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Load the plugin in this Python file.", rich_help_panel="Other"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Ask a VILA model about images and videos."""
    if as_json and stream:
        raise ConfigError("--json and --stream exclude one another: JSON is printed whole.")
    for path in plugin or ():
        load_plugin_file(path)
    prompt = read_prompt(text, media or ())
    overrides = read_overrides(override or (), num_video_frames=num_video_frames, video_max_tiles=video_max_tiles)
    settings: GenerationSettings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
        "json_mode": json_mode,
        "json_schema": read_json_schema(json_schema) if json_schema else None,
    }
    from vila_core.engine.sampling import GenerationConfig

    GenerationConfig.model_validate(settings)  # a mistake is told before the model takes its time to load
    with _status(f"Loading {model_path or 'the embedded model'} …"):
        model = vila_core.load(
            model_path,
            device=device,
            dtype=dtype,
            chat_template=None if conv_mode == "auto" else conv_mode,
            revision=revision,
            offline=offline,
            lora=lora_path,
            **overrides,
        )
    if explain is not None:
        _explain(model, prompt, explain)
    _answer(model, prompt, settings, as_json=as_json, stream=sys.stdout.isatty() if stream is None else stream)


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
        with _status("Answering …"):
            answer = model.complete(prompt, **settings).text
        typer.echo(answer)


def strip_pieces(pieces: Iterable[str]) -> Iterator[str]:
    """Strip the blanks around a streamed text, as `complete` does around a whole one."""
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

    from vila_core.cli.explain import draw_explanation, print_explanation

    inspection = model.inspect(prompt)
    console = Console(stderr=True)
    print_explanation(inspection, model.config, console)
    if inspection.media:
        draw_explanation(inspection, model.config, path)
        console.print(f"Tiles drawn in [bold]{path}[/bold]\n")


def _status(message: str) -> AbstractContextManager[Any]:
    """Return a spinner on standard error, where a person looks at it."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(message)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `vila-infer`: run `arguments` (else the process's own) and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    run(
        app, "vila-infer", join_values(given, several=("--media", "--stop"), optional={"--explain": "vila-explain.png"})
    )
