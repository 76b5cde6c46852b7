"""Run benchmarks on a quantized model and its original, with the plugin that provides `vila eval` (vila-eval)."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from vila_core.checkpoint.lora import find_source
from vila_core.config import Config
from vila_core.errors import MissingDependencyError
from vila_core.exit_codes import describe_exit
from vila_core.plugins.loader import load_plugins
from vila_quant.errors import QuantizationError


class TaskChange(Config):
    """The main measure of a benchmark on both models, paired by sample; shares are 0 to 1. None without a test."""

    task: str
    measure: str
    unit: str
    before: float
    after: float
    difference: float
    standard_error: float | None
    p_value: float | None
    samples: int


def find_evaluation() -> None:
    """Raise `MissingDependencyError` unless a plugin provides `vila eval`."""
    if "eval" not in load_plugins().commands:
        raise MissingDependencyError("vila-eval", "--tasks", "vila-eval")


def compare_tasks(
    against: str | Path,
    model: str | Path,
    tasks: Sequence[str],
    results: Path,
    *,
    limit: int | None,
    device: str,
    dtype: str,
    offline: bool,
) -> list[TaskChange]:
    """Run the tasks on both models and compare them sample by sample.

    Answers are kept in `results`: a second call continues, and starts over if a model has changed since.

    Raises:
        QuantizationError: an evaluation failed (its message is included).
    """
    settings = [
        "--force",
        "--device",
        device,
        "--dtype",
        dtype,
        *(["--offline"] if offline else []),
        "--output-dir",
        str(results),
        "--json",
    ]
    settings += [] if limit is None else ["--limit", str(limit)]
    folders: list[dict[str, str]] = []
    for role, path in (("original", against), ("quantized", model)):
        source, lora = find_source(path, offline=offline)
        adapter = [] if lora is None else ["--lora-path", str(lora)]
        name = f"{role}-{Path(path).absolute().name}"
        run = _vila_eval(
            ["--model-path", str(source), *adapter, "--model-name", name, "--tasks", ",".join(tasks), *settings]
        )
        if failed := [f"{task['task']}: {task['error']}" for task in run["tasks"] if task["error"] is not None]:
            raise QuantizationError(f"{path} could not be evaluated. {'; '.join(failed)}")
        folders.append({task["task"]: task["folder"] for task in run["tasks"] if task["result"] is not None})
    before, after = folders
    # Task by task, since the folders may contain other tasks of earlier calls.
    changes = [_compare(task, before[task], after[task]) for task in before if task in after]
    return [change for change in changes if change is not None]


def _compare(task: str, before: str, after: str) -> TaskChange | None:
    """Compare the answers in two folders; None if the task is scored elsewhere."""
    (compared,) = _vila_eval(["compare", before, after, "--json"])["tasks"]
    if not compared["measures"]:
        return None
    headline = compared["measures"][0]
    return TaskChange(
        task=task,
        measure=headline["name"],
        unit=headline["unit"],
        before=headline["first"],
        after=headline["second"],
        difference=headline["difference"],
        standard_error=headline["standard_error"],
        p_value=headline["p_value"],
        samples=compared["paired"],
    )


def _vila_eval(arguments: Sequence[str]) -> dict[str, Any]:
    """Run `vila eval`, showing its progress, and return the object it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "vila_core", "eval", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    try:
        return cast("dict[str, Any]", json.loads(done.stdout))
    except json.JSONDecodeError as error:
        raise QuantizationError(f"`vila eval` {describe_exit(done.returncode)}. Its message is above.") from error
