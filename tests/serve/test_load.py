"""The load script of `benchmarks/`, in its short form: no error and no wrong answer under load."""

import json
import sys
from pathlib import Path

from tests.programs import run_program

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


def test_no_error_and_no_wrong_answer_under_load(tmp_path: Path):
    out = tmp_path / "serving.json"
    command = [sys.executable, str(SCRIPT), "--short", "--cancel-each", "5", "--device", "cpu"]
    command += ["--out", str(out), "--plot", str(tmp_path / "load.svg")]
    done = run_program(command, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    one, many = json.loads(out.read_text(encoding="utf-8"))
    assert (one["clients"], many["clients"]) == (1, 16)
    assert many["requests"] + many["cancelled"] >= 16
    assert many["cancelled"] > 0
    assert (tmp_path / "load.svg").stat().st_size > 1000
    assert one["errors"] + many["errors"] + one["wrong"] + many["wrong"] == 0
    assert many["memory_mb"] < 2 * one["memory_mb"]
