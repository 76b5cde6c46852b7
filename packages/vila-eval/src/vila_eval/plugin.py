"""What vila-eval adds to VILA Kit. Cheap to import: no torch, no datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl

if TYPE_CHECKING:
    import typer

    from vila_eval.metric import AnyMetric
    from vila_eval.task import Task

VILA_HOOK_API = 1


@hookimpl
def vila_tasks() -> Sequence[Task]:
    """The benchmarks that come with vila-eval."""
    from vila_eval.tasks import ALL

    return ALL


@hookimpl
def vila_metrics() -> Sequence[AnyMetric]:
    """The metrics that any task may name."""
    from vila_eval.metrics import ALL

    return ALL


@hookimpl
def vila_commands() -> Sequence[Command]:
    """`vila eval`."""
    return (Command("eval", "Evaluate models: benchmarks, comparisons, reports.", _command),)


def _command() -> typer.Typer:
    from vila_eval.cli.main import app

    return app
