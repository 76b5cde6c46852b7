"""Scalars for experiment trackers."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from vila_core.errors import ConfigError, MissingDependencyError
from vila_eval.errors import ResultsError
from vila_eval.metric import Measure
from vila_eval.records.schema import Counts, ModelIdentity, RunSettings, TaskResult
from vila_eval.records.storage import RESULTS, write_record
from vila_eval.report.tracking import report_to
from vila_eval.statistics import Estimate

EXPECTED = {
    "vila/shapes/accuracy": 0.75,
    "vila/shapes/accuracy/kind=plain": 0.5,
    "vila/shapes/accuracy_standard_error": 0.125,
}

FAKE_WANDB = """
calls = []

class Run:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        calls.append("finished")
    def log(self, values):
        calls.append(values)

def init(**options):
    calls.append(options)
    return Run()
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    result = TaskResult(
        task="vila/shapes",
        task_version=2,
        distribution="test",
        model=ModelIdentity(name="my-model", source="here", digest="d"),
        settings=RunSettings(max_new_tokens=8),
        data={},
        metric="accuracy",
        measures=(
            Measure("accuracy", Estimate(0.75, 0.125, 4)),
            Measure("accuracy", Estimate(0.5, math.nan, 2), group=("kind", "plain")),
        ),
        counts=Counts(samples=4),
    )
    write_record(tmp_path / "my-model/vila/shapes" / RESULTS, result)
    return tmp_path / "my-model"


def test_wandb_run(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    report_to("wandb", results, project="mine")
    options, values, finished = importlib.import_module("wandb").calls
    monkeypatch.delitem(sys.modules, "wandb")
    assert (options["project"], options["name"], options["dir"]) == ("mine", "my-model", str(results))
    assert options["config"]["tasks"] == {"vila/shapes": 2}
    assert (values, finished) == (EXPECTED, "finished")


def test_tensorboard_events(results: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    report_to("tensorboard", results)
    report_to("tensorboard", results)  # the second replaces the first
    found = accumulator.EventAccumulator(str(results / "tensorboard"))
    found.Reload()
    assert {tag: [event.value for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]} == {
        name: [value] for name, value in EXPECTED.items()
    }


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_says_what_to_install(results: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("vila_eval.report.tracking.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'vila-eval\[{kind}\]'"):
        report_to(kind, results)


def test_bad_input(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"Unknown tracker 'tensorbord'.*Did you mean 'tensorboard'"):
        report_to("tensorbord", results)
    monkeypatch.setattr("vila_eval.report.tracking.find_spec", lambda name: "found")
    with pytest.raises(ResultsError, match="no results"):
        report_to("wandb", results / "nothing")
