"""Sending results to an experiment tracker: TensorBoard or Weights & Biases, each an optional extra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vila_core.errors import ConfigError, MissingDependencyError, unknown_name
from vila_eval.errors import ResultsError
from vila_eval.records.schema import TaskResult
from vila_eval.records.storage import find_results, merged_metrics, read_result

Tracker = Literal["tensorboard", "wandb"]


def report_to(kind: Tracker, model_folder: Path, *, project: str = "vila-eval") -> None:
    """Send a model's measures to a tracker, one scalar per measure: "pope/accuracy", "pope/accuracy/category=random".

    TensorBoard's events go to `model_folder/tensorboard`. Weights & Biases gets a run of `project`, named like the
    model; its files go to `model_folder/wandb`, and its own settings apply (such as WANDB_MODE=offline).

    Raises:
        ConfigError: the tracker is unknown.
        MissingDependencyError: its package is not installed.
        ResultsError: there are no results.
    """
    check_installed(kind)
    results = {name: read_result(folder) for name, folder in find_results(model_folder).items()}
    if not results:
        raise ResultsError(f"There are no results in '{model_folder}'.")
    if kind == "tensorboard":
        _write_events(scalars(results), model_folder / "tensorboard")
    else:
        _log_run(scalars(results), results, model_folder, project)


def check_installed(kind: Tracker) -> None:
    """Raise what `report_to` would raise for this tracker, before a long run begins."""
    if kind not in ("tensorboard", "wandb"):
        raise ConfigError(unknown_name("tracker", kind, ("tensorboard", "wandb")))
    if find_spec(kind) is None:
        raise MissingDependencyError(kind, f"--report-to {kind}", f"vila-eval[{kind}]")


def scalars(results: Mapping[str, TaskResult]) -> dict[str, float]:
    """Return every measure by "<task>/<measure>", and the standard error of each headline."""
    found = {
        f"{task}/{measure}": float(value)
        for task, measures in merged_metrics(results).items()
        for measure, value in measures.items()
    }
    for task, result in results.items():
        if result.headline is not None and result.headline.standard_error is not None:
            found[f"{task}/{result.headline.name}_standard_error"] = result.headline.standard_error
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _write_events(values: Mapping[str, float], folder: Path) -> None:
    from torch.utils.tensorboard.writer import SummaryWriter

    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()  # only the current results, not those of earlier runs
    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, 0)


def _log_run(values: Mapping[str, float], results: Mapping[str, TaskResult], folder: Path, project: str) -> None:
    import wandb  # pyright: ignore[reportMissingImports]

    model = next(iter(results.values())).model
    config: dict[str, Any] = {
        "model": model.model_dump(),
        "tasks": {name: result.task_version for name, result in results.items()},
    }
    with wandb.init(project=project, name=model.name, config=config, dir=str(folder)) as run:
        run.log(dict(values))
