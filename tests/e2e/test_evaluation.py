"""Benchmarks from the command line to the report.

`vila-eval` as installed, the embedded model, miniatures, no network.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.programs import run_program

PLUGIN = """
from pathlib import Path
from vila_core import Image, hookimpl
from vila_eval import LocalFiles, Question, Task

HERE = Path(__file__).parent

def ask(row):
    return Question(id=row["id"], prompt=[Image(row["image"]), row["question"]], answer=row["answer"])

def ask_wrongly(row):
    return Question(id=row["id"], prompt=[row["no_such_column"]], answer=row["answer"])

COLUMNS = {"id": "string", "image": "string: file", "question": "string", "answer": "string"}

@hookimpl
def vila_tasks():
    return [
        Task("acme/scene", LocalFiles(HERE / "rows.jsonl", COLUMNS), ask, "exact_match"),
        Task("acme/columns", LocalFiles(HERE / "rows.jsonl", COLUMNS | {"level": "int"}), ask, "exact_match"),
        Task("acme/broken", LocalFiles(HERE / "rows.jsonl", COLUMNS), ask_wrongly, "exact_match"),
    ]
"""
MEDIA = Path(__file__).parents[2] / "examples" / "media"


def vila_eval(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `vila-eval` in another folder, with no GPU and the hub switched off."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "VILA_EVAL_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "vila_eval", *map(str, arguments)]
    return run_program(command, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run of two tasks, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("run")
    return vila_eval("--fixtures", "--tasks", "pope,vila/attribute", "--limit", 5, folder=folder), folder


def test_a_run_ends_with_a_table_and_a_report(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, folder = finished
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:7] == ["task", "measure", "value", "95", "%", "interval", "n"]
    assert [line[0] for line in lines if "5" in line[2:-1] and "%" in line] == ["vila/attribute", "pope"]
    assert "1 of 2 tasks ran on made-up rows in the dataset's schema (--fixtures)" in done.stdout
    (model,) = (folder / "results").iterdir()
    assert "</html>" in (model / "report.html").read_text(encoding="utf-8")
    for task, measure in (("pope", "accuracy"), ("vila/attribute", "exact_match")):
        assert json.loads((model / task / "results.json").read_text())["measures"][0]["name"] == measure
        assert len((model / task / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 5
        assert measure in json.loads((model / "metrics.json").read_text())[task]
    assert "\x1b" not in done.stdout + done.stderr


def test_the_same_command_again_asks_nothing_and_says_the_same(
    finished: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    first, folder = finished
    (model,) = (folder / "results").iterdir()
    before = (model / "pope" / "results.json").read_bytes()
    again = vila_eval("--fixtures", "--tasks", "pope", "vila/attribute", "--limit", 5, "--json", folder=folder)
    assert again.returncode == 0, again.stderr
    outcomes = {task["task"]: task["result"] for task in json.loads(again.stdout)["tasks"]}
    assert outcomes["pope"] == json.loads(before)
    assert (model / "pope" / "results.json").read_bytes() == before
    assert f"{100 * outcomes['pope']['measures'][0]['value']:.1f} %" in first.stdout


def test_samples_are_shown_to_be_read(finished: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = finished
    (model,) = (folder / "results").iterdir()
    one = vila_eval("show", model / "pope", "--id", "1", folder=folder).stdout
    assert "[image]\n  | Is there a square in the image?" in one
    assert "reference: no" in one
    wrong = vila_eval("show", model / "pope", "--wrong", "2", folder=folder)
    assert "of 5 answers are wrong or only partly right" in wrong.stdout
    unknown = vila_eval("show", model / "pope", "--id", "x", folder=folder)
    assert (unknown.returncode, "Unknown sample 'x'" in unknown.stderr) == (2, True)


def test_an_unknown_task_is_an_error_with_the_nearest_names(tmp_path: Path) -> None:
    done = vila_eval("--tasks", "pope,vila/atribute", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Unknown task or tag 'vila/atribute'. Did you mean 'vila/attribute'")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_file_adds_a_task_and_its_broken_ones_harm_nothing(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(PLUGIN)
    rows = [
        {"id": name, "image": name, "question": "What is in the picture?", "answer": "?"}
        for name in ("scene.png", "missing.png")
    ]
    shutil.copy(MEDIA / "scene.png", tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = vila_eval("--plugin", "acme.py", "--tasks", "acme/*", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    table = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("acme/")}
    assert table["acme/scene"][-2:] == ["2", "1"], "two samples, of which the one without a picture failed"
    assert "acme/columns: " in done.stdout
    assert (
        "has no column 'level'. Expected: id, image, question, answer, level. Found: id, image, question, answer."
        in done.stdout
    )
    assert (
        "acme/broken: Task 'acme/broken' cannot ask row 0: KeyError: 'no_such_column' (acme.py, line 12)."
        in done.stdout
    )
    (model,) = (tmp_path / "results").iterdir()
    assert (model / "acme" / "scene" / "results.json").exists()


def test_a_dry_run_reads_every_task_and_writes_nothing_but_its_sheet(tmp_path: Path) -> None:
    done = vila_eval("--fixtures", "--tasks", "pope", "vila/motion", "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[video, as many frames as the model takes]\n  | " in done.stdout
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["dry-run.png"]


def test_every_local_benchmark_runs_on_its_miniature(tmp_path: Path) -> None:
    done = vila_eval("--fixtures", "--tags-include", "local", "--limit", 1, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    tasks = {task["task"]: task["result"] for task in json.loads(done.stdout)["tasks"]}
    assert len(tasks) > 60
    assert [name for name, result in tasks.items() if result is None] == []
    assert [name for name, result in tasks.items() if result["counts"]["samples"] < 1] == []
    # The embedded model reads 2,048 tokens, and a frame takes 37.
    too_long = [f"videomme{subtitles}-{frames}" for subtitles in ("", "_w_subtitle") for frames in (64, 128, 256, 512)]
    assert sorted(name for name, result in tasks.items() if result["counts"]["failed"]) == sorted(too_long)
    for name in too_long:
        (sample,) = (
            json.loads(line)
            for line in (tmp_path / "results/vila-tiny" / name / "samples.jsonl").read_text().splitlines()
        )
        assert "but the context is 2048" in sample["error"], name


def test_ctrl_c_ends_a_run_and_its_workers_soon_and_without_a_traceback(tmp_path: Path) -> None:
    arguments = ["--tasks", "vila/count", "--limit", "400", "--batch-size", "4", "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "vila_eval", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def heed_interrupts() -> None:
        """A shell starts background jobs, this test's runner perhaps among them, with interrupts ignored.

        Children inherit that.
        """
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    try:
        deadline = time.monotonic() + 300
        while not any(file.stat().st_size for file in tmp_path.rglob("answers-*.jsonl")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Stopped. The answers so far are kept" in errors
    assert "Traceback" not in errors
