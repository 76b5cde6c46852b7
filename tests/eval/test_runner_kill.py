"""Runs of vila-tiny that are killed at random moments and restarted give the same results as an uninterrupted run.

The child processes are forked from a process that has loaded the model, so starting is cheap and the kills happen
while the model answers.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from tests.programs import run_program

SCRIPT = """
import os, random, signal, sys, time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

import vila_core
from vila_eval.running.answering import LazyModel
from vila_core.cli.progress import NoProgress
from vila_eval.options import ModelOptions, Planned, RunOptions
from vila_eval.running.runner import evaluate
from vila_eval.data.sources import DataOptions
from vila_eval.tasks.drawn_world import DRAWN_WORLD, DrawnWorld
from vila_eval.tasks.images.pope import POPE

torch.set_num_threads(1)  # threads do not survive a fork
folder, kills, samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tasks = {task.name: task for task in DRAWN_WORLD}
drawn = [replace(tasks[f"vila/{test}"], source=DrawnWorld(test, samples=samples)) for test in ("count", "position")]
plan = [Planned(task, task.name) for task in (*drawn, POPE)]
model = vila_core.load(device="cpu")
POPE.source.open(DataOptions(folder / "cache", fixtures=True))  # imports what reads it
LazyModel.get = lambda self: model


def run(name):
    options = RunOptions(folder / name, DataOptions(folder / "cache", fixtures=True), batch_size=2)
    for outcome in evaluate(ModelOptions(), plan, options, NoProgress()):
        assert outcome.result is not None, outcome


def fork(name):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(name)
            status = 0
        finally:
            os._exit(status)
    return child


def stored():
    size = 0
    for path in (folder / "killed").rglob("*.jsonl"):
        with suppress(FileNotFoundError):  # answers go when they are merged
            size += path.stat().st_size
    return size


def finished(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


started = time.monotonic()
assert os.waitpid(fork("whole"), 0)[1] == 0
seconds_a_batch = (time.monotonic() - started) / (samples + 3)
rng = random.Random(0)
hits = 0
for _ in range(kills):
    child, before, batches = fork("killed"), stored(), rng.randrange(3)
    # Past some batches of its own, and then at any moment of the next: computing, writing, scoring, between tasks.
    for _ in range(batches + 1):
        before = stored()
        while stored() == before and not finished(child):
            time.sleep(0.001)
    time.sleep(rng.uniform(0, seconds_a_batch))
    hits += not finished(child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
assert os.waitpid(fork("killed"), 0)[1] == 0
print(hits)
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(kills: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(kills), "40"]
    finished = run_program(command, env=environment())
    assert finished.returncode == 0, finished.stderr
    assert 1 <= int(finished.stdout) <= kills, "kills that hit a run"
    names = ["vila/count", "vila/position", "pope"]
    for file in (*(f"{name}/{kind}" for name in names for kind in ("results.json", "samples.jsonl")), "metrics.json"):
        whole, killed = (tmp_path / run / "vila-tiny" / file for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), file
    results = json.loads((tmp_path / "killed/vila-tiny/vila/count/results.json").read_text())
    assert results["counts"]["samples"] == 40
    assert results["measures"][0]["value"] > 0.7
    assert not list(tmp_path.rglob("answers-*"))
