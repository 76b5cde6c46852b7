"""The benchmark of full training on a node, with shapes that two processes of a CPU can train."""

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.programs import run_program

from vila_train import checkpoints

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_node.py"
TUNED = {
    "sft": {"vision_tower", "projector", "language_model"},
    "align": {"projector"},
    "stage1.5": {"projector", "vision_tower"},
    "pretrain": {"projector", "language_model"},
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module of the script, which runs in this process without GPUs."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder and the lines of a run on two processes."""
    out = tmp_path_factory.mktemp("node")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    options = ["--shapes", "tiny", "--rows", "1", "--steps", "1", "--stage-steps", "3", "--only", *TUNED, "checkpoint"]
    environment = {"PYTHONPATH": ":".join(sys.path), "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    environment = os.environ | environment | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, "--out", str(out), *options]
    done = run_program(command, seconds=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, [json.loads(line) for line in done.stdout.splitlines()]


def test_all_stages_train_what_the_recipes_say(two: tuple[Path, list[dict[str, Any]]]):
    out, lines = two
    assert [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] == lines
    machine, *stages = lines[:-1]
    assert (machine["device"], machine["gpus"]) == ("CPU", 2)
    assert {line["part"]: set(line["changed"]) for line in stages} == TUNED
    assert all(line["sharded"] and line["steps"] == 3 and len(line["losses"]) == 3 for line in stages)


def test_a_checkpoint_is_resumed_on_half_the_ranks(
    two: tuple[Path, list[dict[str, Any]]], script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, lines = two
    saved = lines[-1]
    assert saved["part"] == "checkpoint"
    assert saved["loss_difference"] <= 1e-6 < saved["moved_by_training"]
    assert saved["checkpoint_gb"] > 0.01
    assert script.main(["--out", str(tmp_path), "--resume-from", str(out / "checkpoints-2")]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["from_processes"], line["gpus"], line["rows_per_gpu"]) == (2, 1, 2)
    assert line["recorded"] == saved["recorded"]
    assert line["losses"] == pytest.approx(saved["losses"], rel=1e-5)


def test_it_notices_that_the_moments_are_missing(
    two: tuple[Path, list[dict[str, Any]]],
    script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(checkpoints, "_set_optimizer_tensors", lambda *arguments: None)
    assert script.main(["--out", str(tmp_path), "--resume-from", str(two[0] / "checkpoints-2")]) == 1
    assert "losses after loading differ" in json.loads(capsys.readouterr().out)["error"]


def test_runs_are_compared_with_that_on_two_gpus(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    case = {"part": "sft", "shapes": "nvila-8b", "layers": None, "row_length": 8192, "rows_per_gpu": 2}
    figures = {"recompute": "full", "precision": "bf16", "of_ceiling": 0.5, "peak_gb": 80.0, "peak_of_estimate": 1.0}
    speeds = {2: 5000, 8: 4700}
    lines = [case | figures | {"gpus": gpus, "tokens_per_second": speed} for gpus, speed in speeds.items()]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"device": "CPU"}, *lines]))
    assert script.main(["--out", str(tmp_path), "--table"]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [row[4:7] for row in rows[1:]] == [["2", "5000", "1.0"], ["8", "4700", "0.94"]]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--table"], "results.jsonl cannot be read"),
        (["--resume-from", "nowhere"], "nowhere has no recorded.json"),
        (["--only", "checkpoint"], "A checkpoint takes 97 GB, and .* has 57 GB to spare. .* use at most --layers 13."),
    ],
    ids=["no-results", "no-checkpoint", "no-room"],
)
def test_errors_are_one_line(
    script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    problem: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=60 * 10**9))
    assert script.main(["--out", "out", *arguments]) == 2
    assert re.search(problem, capsys.readouterr().err)
