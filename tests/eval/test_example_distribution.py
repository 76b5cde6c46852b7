"""The example plugin: installing it with pip adds its benchmark and metric; uninstalling it removes them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs import run_program

EXAMPLE = Path(__file__).parents[2] / "examples" / "vila-eval-example"


def install(source: Path, folder: Path) -> Path:
    """Install a distribution with pip into a folder of its own."""
    flags = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-index",
    ]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder), str(source)]
    done = run_program(command)
    assert done.returncode == 0, done.stderr
    return folder


def variant(folder: Path, distribution: str, plugin: str, *, code: str | None = None) -> Path:
    """Install a copy of the example under another name, perhaps with another plugin module."""
    package = distribution.replace("-", "_")
    source = folder / "source"
    shutil.copytree(EXAMPLE, source)
    (source / "src" / "vila_eval_example").rename(source / "src" / package)
    for path in [source / "pyproject.toml", *source.glob("src/*/*.py")]:
        text = path.read_text().replace("vila_eval_example", package).replace("vila-eval-example", distribution)
        path.write_text(text.replace('\nexample = "', f'\n{plugin} = "'))
    if code is not None:
        (source / "src" / package / "plugin.py").write_text(code)
    return install(source, folder / "target")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the installed example."""
    return install(EXAMPLE, tmp_path_factory.mktemp("example"))


def run(*command: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with distributions on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VILA_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    return run_program([sys.executable, *command], cwd=cwd, env=environment)


def vila_eval(*arguments: str, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "vila_eval", *arguments, path=path, cwd=cwd)


def listed(*path: Path, cwd: Path) -> tuple[dict[str, str], str]:
    """Return the distribution of each task, and the problems, as `vila-eval list` gives them."""
    done = vila_eval("list", "--json", path=[*path], cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {task["task"]: task["distribution"] for task in found["tasks"]}, " ".join(found["problems"])


def test_installed_it_is_listed_and_runs(example: Path, tmp_path: Path) -> None:
    tasks, problems = listed(example, cwd=tmp_path)
    assert (tasks["example/scenes"], tasks["pope"], problems) == ("vila-eval-example", "vila-eval", "")
    done = vila_eval("--tasks", "example/scenes", "--device", "cpu", "--json", path=[example], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    headline = task["result"]["measures"][0]
    (alone,) = (measure for measure in task["result"]["measures"] if measure["group"] == ["things", "1"])
    # One word of four is wrong in one of eight descriptions, which is one of the two of a lone thing.
    assert (headline["name"], headline["value"], headline["n"], headline["higher_is_better"]) == (
        "word_error_rate",
        0.25 / 8,
        8,
        False,
    )
    assert (alone["value"], alone["n"]) == (0.125, 2)
    assert task["result"]["distribution"] == "vila-eval-example"
    assert (tmp_path / "results" / "vila-tiny" / "example" / "scenes" / "samples.jsonl").is_file()


def test_uninstalled_it_is_gone(tmp_path: Path) -> None:
    tasks, _ = listed(cwd=tmp_path)
    assert "pope" in tasks
    assert "example/scenes" not in tasks
    done = vila_eval("--tasks", "example/scenes", path=[], cwd=tmp_path)
    assert done.returncode == 2
    assert "Unknown task or tag 'example/scenes'" in done.stderr


def test_a_broken_one_is_reported_and_harms_nothing(example: Path, tmp_path: Path) -> None:
    broken = variant(tmp_path, "vila-eval-broken", "broken", code="import a_package_that_nobody_has\n")
    tasks, problems = listed(example, broken, cwd=tmp_path)
    assert {"example/scenes", "pope"} <= set(tasks)
    assert "vila-eval-broken" in problems
    assert "a_package_that_nobody_has" in problems
    done = vila_eval(
        "--tasks", "example/scenes", "--limit", "1", "--device", "cpu", path=[example, broken], cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "vila-eval-broken 1.0.0" in done.stderr


def test_two_distributions_with_one_task_are_both_named(example: Path, tmp_path: Path) -> None:
    other = variant(tmp_path, "vila-eval-other", "other")
    done = vila_eval("--tasks", "example/scenes", path=[example, other], cwd=tmp_path)
    assert done.returncode == 2
    assert "vila-eval-example 1.0.0" in done.stderr
    assert "vila-eval-other 1.0.0" in done.stderr
    tasks, _ = listed(example, other, cwd=tmp_path)
    assert "pope" in tasks


def test_its_own_tests_pass(example: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", path=[example], cwd=tmp_path)
    assert done.returncode == 0, done.stdout
