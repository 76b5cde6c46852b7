"""`vila-eval list`: list tasks and metrics, and what failed to load."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vila_core.cli.options import AsJson, Plugin, load_plugin_files
from vila_core.errors import ConfigError, PluginError, unknown_name
from vila_core.plugins.hookspecs import Named
from vila_core.plugins.loader import load_plugins
from vila_core.plugins.registration import Plugins
from vila_core.plugins.registry import Registry
from vila_eval.cli.arguments import split_names
from vila_eval.running.selection import checked
from vila_eval.task import Task
from vila_eval.texts import one_line


def list_tasks(
    tags: Annotated[
        list[str] | None, typer.Option("--tags", metavar="TAG", help="Only tasks with any of these tags.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", metavar="", help="List the metrics that tasks can use.")
    ] = False,
    as_json: AsJson = False,
    plugin: Plugin = None,
) -> None:
    """List the tasks or the metrics, and the plugins that failed to load."""
    load_plugin_files(plugin)
    plugins = load_plugins()
    rows = _metric_rows(plugins.metrics) if metrics else _task_rows(plugins.tasks, split_names(tags or ()))
    problems = _problems(plugins)
    if as_json:
        typer.echo(
            json.dumps({"metrics" if metrics else "tasks": rows, "problems": problems}, ensure_ascii=False, indent=2)
        )
        return
    _print_table(rows)
    if problems:
        typer.secho("\nFailed to load:", fg=typer.colors.RED, bold=True)
    for problem in problems:
        typer.echo(problem)


def _task_rows(tasks: Registry[Named], tags: list[str]) -> list[dict[str, Any]]:
    found = [entry.item for entry in tasks.items() if isinstance(entry.item, Task)]
    known = sorted({tag for task in found for tag in task.tags})
    for tag in tags:
        if tag not in known:
            raise ConfigError(unknown_name("tag", tag, known))
    return [
        {
            "task": task.name,
            "version": task.version,
            "tags": list(task.tags),
            "data": task.source.description,
            "metric": task.metric if task.metric is None or isinstance(task.metric, str) else task.metric.name,
            "video": task.has_video,
            "frames": task.num_video_frames,
            "submission": None if task.submission is None else task.submission.filename,
            "distribution": tasks.owner(task.name).distribution,
            "description": task.description,
            "url": task.url,
        }
        for task in found
        if not tags or set(tags) & set(task.tags)
    ]


def _metric_rows(metrics: Registry[Named]) -> list[dict[str, Any]]:
    return [{"metric": entry.name, "distribution": entry.owner.distribution} for entry in metrics.items()]


def _problems(plugins: Plugins) -> list[str]:
    """Return what failed to load: plugins, names claimed by two plugins, and registered tasks that are not tasks."""
    found = [
        f"plugin '{info.owner.plugin}' of {info.owner.distribution}: {info.error}"
        for info in plugins.infos
        if info.error is not None
    ]
    for name in plugins.tasks.names():
        try:
            checked(plugins.tasks, name)
        except PluginError as error:
            found.append(f"task '{name}': {error}")
    return found


SHOWN = ("task", "version", "tags", "data", "metric", "video", "submission", "distribution")
"""Columns of the table; the JSON has more."""


DROPPABLE = ("distribution", "submission", "version", "video", "tags", "data")
"""Columns that narrow terminals leave out, in this order: names are never cut."""


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from vila_eval.report.table import print_table

    def build(hidden: frozenset[str]) -> Table:
        columns = [name for name in SHOWN if rows and name in rows[0] and name not in hidden]
        table = Table(box=None, header_style="bold", pad_edge=False)
        for number, name in enumerate(columns):
            table.add_column(name, no_wrap=number == 0)
        for row in rows:
            table.add_row(*(escape(one_line(_text(name, row))) for name in columns))
        return table

    print_table(build, DROPPABLE)
    typer.echo(f"\n{len(rows)} {'metrics' if rows and 'task' not in rows[0] else 'tasks'}")


def _text(column: str, row: dict[str, Any]) -> str:
    if column == "video":
        return "–" if not row["video"] else "yes" if row["frames"] is None else f"{row['frames']} frames"
    value: object = row[column]
    return "–" if value is None else ", ".join(row[column]) if isinstance(value, list) else str(value)
