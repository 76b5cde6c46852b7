"""The plugin of vila-eval: tasks, metrics and the command `vila eval`. It imports neither torch nor datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vila_core import Command, hookimpl
from vila_core.plugins.lazy import lazy_object

if TYPE_CHECKING:
    from vila_eval.metric import AnyMetric
    from vila_eval.task import Task

VILA_HOOK_API = 2


@hookimpl
def vila_tasks() -> Sequence[Task]:
    """Return the benchmarks that come with vila-eval."""
    from vila_eval.tasks import ALL

    return ALL


@hookimpl
def vila_metrics() -> Sequence[AnyMetric]:
    """Return the metrics that any task can name."""
    from vila_eval.metrics import ALL

    return ALL


@hookimpl
def vila_commands() -> Sequence[Command]:
    """Return `vila eval`."""
    return (
        Command("eval", "Evaluate models: benchmarks, comparisons, reports.", lazy_object("vila_eval.cli.main:app")),
    )
