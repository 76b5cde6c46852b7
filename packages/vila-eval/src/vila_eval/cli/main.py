"""`vila-eval`: run benchmarks on a model.

Flags become a plan and options, then there is one library call, a table and a report.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

import vila_eval
from vila_core.cli.commands import LazyGroup
from vila_core.cli.option_groups import with_option_groups
from vila_core.cli.options import Debug, Plugin, load_plugin_files, version_option
from vila_core.cli.run import run as run_app
from vila_core.errors import ConfigError
from vila_core.plugins.hookspecs import Command
from vila_core.plugins.lazy import lazy_object
from vila_eval.cli.arguments import read_rank, rewrite
from vila_eval.cli.flags import DataFlags, JudgeFlags, ModelFlags, OutputFlags, RunFlags, TaskFlags

HELP = """
Run benchmarks on a VILA model. Without --model-path, the small embedded model answers: no network, no GPU.

Answers are saved as they come: after an interruption, the same command continues. \
Results are in OUTPUT-DIR/MODEL/TASK, with one report.html per model.

[bold]Examples[/bold]

vila-eval --tags-include local --limit 5 --fixtures [dim]# a trial on made-up rows[/dim]

vila-eval --tasks vila/blocks [dim]# drawn shapes, with the embedded model[/dim]

vila-eval -m Efficient-Large-Model/NVILA-8B --tasks pope "videomme-*" -nf 8/64

vila-eval -m MODEL --tasks mmvet --judge-url https://api.openai.com/v1 [dim]# sets the judge[/dim]

vila-eval --tasks chartqa --dry-run [dim]# show the first prompts; load no model[/dim]

vila-eval compare results/model-a results/model-b [dim]# is B better?[/dim]
"""


INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM."""


COMMANDS = (
    Command(
        "list",
        "List the tasks or metrics, and the plugins that failed to load.",
        lazy_object("vila_eval.cli.listing:list_tasks"),
    ),
    Command(
        "show", "Print samples of a result: prompt, answer, reference, score.", lazy_object("vila_eval.cli.show:show")
    ),
    Command("compare", "Compare two runs sample by sample.", lazy_object("vila_eval.cli.compare:compare")),
    Command("report", "Rewrite the report of a results folder.", lazy_object("vila_eval.cli.report:report")),
)


class EvaluationGroup(LazyGroup):
    """The options of a run, or a subcommand, which is imported when it runs."""

    lazy_commands = COMMANDS

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, rewrite(args))


app = typer.Typer(cls=EvaluationGroup, add_completion=False, rich_markup_mode="rich", help=HELP)


@app.callback(invoke_without_command=True, no_args_is_help=True)
@with_option_groups
def evaluate(
    context: typer.Context,
    model: ModelFlags,
    tasks: TaskFlags,
    data: DataFlags,
    run: RunFlags,
    judge: JudgeFlags,
    output: OutputFlags,
    plugin: Plugin = None,
    version: Annotated[bool, version_option(vila_eval.__version__)] = False,
    debug: Debug = False,
) -> None:
    """Run benchmarks on a VILA model."""
    load_plugin_files(plugin)
    if context.invoked_subcommand is not None:
        return
    if run.dry_run and output.as_json:
        raise ConfigError("Got both --dry-run and --json: a dry run has no JSON output.")
    from vila_core.plugins.loader import load_plugins

    model_options = model.options()
    options = run.options(tasks.limit, data.options(offline=model.offline), judge.options())
    plan = tasks.plan(load_plugins().tasks)
    if run.dry_run:
        from vila_eval.cli.dry_run import show_prompts

        raise typer.Exit(show_prompts(model_options, plan, options))

    from vila_eval.cli.running import run_plan

    tracker = output.report_to.value if output.report_to else None
    raise typer.Exit(run_plan(model_options, plan, options, read_rank(), tracker=tracker, as_json=output.as_json))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `vila-eval` with `arguments` (default: those of the process) and exit."""
    try:
        run_app(app, "vila-eval", arguments)
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            # Do not wait for a thread that still reads a long video. All answers are on disk.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(ended.code))
        raise
