"""The training benchmark of `benchmarks/`, with the case that a CPU can run."""

import json
import math
import sys
from pathlib import Path

import pytest
from tests.programs import run_program

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"
TINY_VOCABULARY = ROW_LENGTH = 2048


def test_the_tiny_case_is_measured_on_a_cpu(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--case", "tiny", "--steps", "1", "--out", str(tmp_path / "out")]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)}
    done = run_program(command, seconds=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "results.jsonl").read_text() == done.stdout
    machine, tiny = map(json.loads, done.stdout.splitlines())
    assert (machine["device"], machine["processes"], machine["precision"]) == ("CPU", 1, "fp32")
    assert tiny["case"] == "tiny"
    assert 0.5 * ROW_LENGTH < tiny["tokens_per_second"] * tiny["step_ms"] / 1e3 < 1.01 * ROW_LENGTH
    assert tiny["of_ceiling"] == pytest.approx(tiny["tflops"] / machine["ceiling_tflops"], rel=0.02, abs=5e-4)
    assert tiny["peak_gb"] is None  # unknown, not zero
    assert len(tiny["losses"]) == 3
    assert all(abs(loss - math.log(TINY_VOCABULARY)) < 0.2 for loss in tiny["losses"])  # random weights know nothing
