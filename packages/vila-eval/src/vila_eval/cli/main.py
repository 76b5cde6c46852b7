"""`vila-eval`: run benchmarks on a model. Flags become a plan and options; then one library call, a table and a report."""

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import vila_eval
from vila_core.cli.main import LazyCommand
from vila_core.cli.run import Debug, run
from vila_core.errors import ConfigError
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.loader import load_plugin_file
from vila_eval.cli.arguments import rewrite

HELP = """
Run benchmarks on a VILA model. Without --model-path the small embedded model answers: no network, no GPU.

Answers are kept as they come: the same command after any stop goes on where it was. \
The results are in OUTPUT-DIR/MODEL/TASK, with a report.html for the model.

[bold]Examples[/bold]

vila-eval --tags-include local --limit 5 --fixtures  [dim]every local benchmark, on made-up rows: does it all work?[/dim]

vila-eval --tasks vila/blocks  [dim]the drawn world, with the embedded model[/dim]

vila-eval -m Efficient-Large-Model/NVILA-8B --tasks pope mmmu_val "videomme-*" --num_video_frames 8/64

vila-eval -m NVILA-8B --tasks llava_in_the_wild --judge-url https://api.openai.com/v1  [dim]the key: VILA_JUDGE_API_KEY[/dim]

vila-eval --tasks chartqa --dry-run  [dim]see the first prompts and their pictures; nothing is asked[/dim]

vila-eval compare results/model-a results/model-b  [dim]is the difference more than noise?[/dim]
"""


INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def _command(name: str, help_: str, module: str, function: str) -> Command:
    def load() -> Any:
        from importlib import import_module

        return vars(import_module(f"vila_eval.cli.{module}"))[function]

    return Command(name, help_, load)


COMMANDS = (
    _command("list", "List the tasks or the metrics, and the plugins that did not load.", "listing", "list_tasks"),
    _command("show", "Print samples of a result: prompt, answer, reference, score.", "show", "show"),
    _command("compare", "Compare two runs sample by sample.", "compare", "compare"),
    _command("report", "Write the report of a results folder anew.", "report", "report"),
)


class EvaluationGroup(TyperGroup):
    """The program: options of a run, or a sub-command, which is imported when it runs."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        for command in COMMANDS:
            self.add_command(LazyCommand(command))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, rewrite(args))


class Tracker(StrEnum):
    """Where numbers are sent beside the results folder."""

    tensorboard = "tensorboard"
    wandb = "wandb"


def _show_version(shown: bool) -> None:
    if shown:
        typer.echo(vila_eval.__version__)
        raise typer.Exit


app = typer.Typer(cls=EvaluationGroup, add_completion=False, rich_markup_mode="rich", help=HELP)

Several = list[str] | None


@app.callback(invoke_without_command=True, no_args_is_help=True)
def evaluate(
    context: typer.Context,
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
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            help="Of the results folder; else the end of the path.",
            rich_help_panel="Model",
        ),
    ] = None,
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Model")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel="Model")] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel="Model")
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(
            "--max-tiles",
            "-mt",
            metavar="N",
            min=1,
            help="Most tiles of an image; else the model's own.",
            rich_help_panel="Model",
        ),
    ] = None,
    tasks: Annotated[
        Several,
        typer.Option(
            "--tasks",
            "-t",
            metavar="TASK…",
            help="Names, patterns ('videomme-*') or tags ('vila/blocks').",
            rich_help_panel="Tasks",
        ),
    ] = None,
    tags_include: Annotated[
        Several,
        typer.Option(
            "--tags-include", "-ti", metavar="TAG…", help="Tasks with any of these tags.", rich_help_panel="Tasks"
        ),
    ] = None,
    tags_exclude: Annotated[
        Several,
        typer.Option(
            "--tags-exclude", "-te", metavar="TAG…", help="But none with any of these.", rich_help_panel="Tasks"
        ),
    ] = None,
    num_video_frames: Annotated[
        Several,
        typer.Option(
            "--num-video-frames",
            "-nf",
            metavar="N/N…",
            help="Frames of each video: video tasks run once for each number, those of a fixed number if it is among them.",
            rich_help_panel="Tasks",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Rows of each task, from the first.", rich_help_panel="Tasks")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copies of hub datasets, as DIR/owner/name; nothing is downloaded.",
            rich_help_panel="Data",
        ),
    ] = None,
    fixtures: Annotated[
        bool,
        typer.Option(
            "--fixtures", metavar="", help="Made-up miniatures instead of the datasets.", rich_help_panel="Data"
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", metavar="", help="Use what is in the hub's cache only.", rich_help_panel="Data")
    ] = False,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="For the results.", rich_help_panel="Run")
    ] = Path("results"),
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", "-b", metavar="N", min=1, help="Prompts answered together.", rich_help_panel="Run"
        ),
    ] = 16,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            "--nproc-per-node",
            "-n",
            metavar="N",
            min=1,
            help="Processes that answer, one a GPU where there are.",
            rich_help_panel="Run",
        ),
    ] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", metavar="", help="Run the workers on a Ray cluster.", rich_help_panel="Run")
    ] = False,
    predict_only: Annotated[
        bool, typer.Option("--predict-only", metavar="", help="Answer, and score later.", rich_help_panel="Run")
    ] = False,
    score_only: Annotated[
        bool,
        typer.Option(
            "--score-only", metavar="", help="Score answers that are there; no model, no data.", rich_help_panel="Run"
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar="",
            help="Start anew where there are results of another model or version.",
            rich_help_panel="Run",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Show the first prompts and their pictures; load no model.",
            rich_help_panel="Run",
        ),
    ] = False,
    judge_url: Annotated[
        str | None,
        typer.Option(
            "--judge-url",
            metavar="URL",
            help="OpenAI-compatible endpoint for judged tasks; its key is read from VILA_JUDGE_API_KEY or OPENAI_API_KEY.",
            rich_help_panel="Judge",
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option("--judge-model", metavar="NAME", help="Instead of each benchmark's own.", rich_help_panel="Judge"),
    ] = None,
    judge_concurrency: Annotated[
        int,
        typer.Option("--judge-concurrency", metavar="N", min=1, help="Requests at a time.", rich_help_panel="Judge"),
    ] = 8,
    judge_price: Annotated[
        str | None,
        typer.Option(
            "--judge-price",
            metavar="IN/OUT",
            help="US dollars a million tokens, for the cost estimate.",
            rich_help_panel="Judge",
        ),
    ] = None,
    report_to: Annotated[
        Tracker | None, typer.Option("--report-to", "-r", help="Send the numbers there too.", rich_help_panel="Output")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print what became of each task.", rich_help_panel="Output")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Load the plugin in this Python file.", rich_help_panel="Other"),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_show_version,
            is_eager=True,
            help="Print the version.",
            rich_help_panel="Other",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run benchmarks on a VILA model."""
    for path in plugin or ():
        load_plugin_file(path)
    if context.invoked_subcommand is not None:
        return
    if predict_only and score_only:
        raise ConfigError("--predict-only and --score-only exclude one another; without either, a run does both.")
    if fixtures and data is not None:
        raise ConfigError("--fixtures and --data exclude one another: miniatures or real data.")
    if dry_run and as_json:
        raise ConfigError("--dry-run and --json exclude one another: a dry run is to be looked at.")

    from vila_core.plugins.loader import load_plugins
    from vila_eval.cli.arguments import cache_folder, read_frames, read_judge, read_rank, split_names
    from vila_eval.options import ModelOptions, RunOptions
    from vila_eval.selection import select
    from vila_eval.sources import DataOptions

    plan = select(
        load_plugins().tasks,
        split_names(tasks or ()),
        split_names(tags_include or ()),
        split_names(tags_exclude or ()),
        read_frames(num_video_frames or ()),
    )
    options = RunOptions(
        output_dir=output_dir.expanduser(),
        data=DataOptions(
            cache_folder(), mirror=data.expanduser() if data else None, fixtures=fixtures, offline=offline
        ),
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        phase="predict" if predict_only else "score" if score_only else "all",
        force=force,
        judge=read_judge(judge_url, judge_model, judge_concurrency, judge_price),
        ray=ray,
    )
    model = ModelOptions(
        path=model_path,
        name=model_name,
        lora=lora_path,
        chat_template=None if conv_mode == "auto" else conv_mode,
        device=device,
        dtype=dtype,
        max_tiles=max_tiles,
        revision=revision,
        offline=offline,
    )
    if dry_run:
        from vila_eval.cli.dry_run import show_prompts

        raise typer.Exit(show_prompts(model, plan, options))

    from vila_eval.cli.running import run_plan

    raise typer.Exit(
        run_plan(model, plan, options, read_rank(), tracker=report_to.value if report_to else None, as_json=as_json)
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `vila-eval`: run `arguments` (else the process's own) and exit."""
    try:
        run(app, "vila-eval", arguments)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            # A thread may still read a long video, and Python would wait for it. All answers are on the disk.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
