"""Several processes on one run: they agree with one, and what becomes of one that fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vila_core.cli.progress import NoProgress
from vila_core.errors import CheckpointError, ConfigError, MissingDependencyError, VilaError
from vila_eval.data.sources import DataOptions
from vila_eval.errors import DataError, WorkerError
from vila_eval.metrics.exact_match import EXACT_MATCH
from vila_eval.options import ModelOptions, Planned, Rank, RunOptions, TaskOutcome
from vila_eval.records.schema import ModelIdentity
from vila_eval.running.answering import LazyModel
from vila_eval.running.failures import read_failures
from vila_eval.running.job import open_job
from vila_eval.running.processes import Processes
from vila_eval.running.ray_workers import RayWorkers
from vila_eval.running.runner import evaluate
from vila_eval.running.workers import Work, answer_task, plan_work
from vila_eval.task import Question, Row, Task
from vila_eval.tasks.drawn_world import DRAWN_WORLD, DrawnWorld
from vila_eval.tasks.images.pope import POPE

NOBODY = ModelIdentity(name="nobody", source="nobody", digest="0")


class Echo:
    """A model that answers with the last word of the prompt."""

    def prepare(self, prompt: list[str]) -> Any:
        from vila_core.prompt import PreparedPrompt

        return PreparedPrompt(prompt[0], [])

    def count_tokens(self, prompt: Any) -> dict[str, int]:
        return {"text": 5}

    def complete_each(self, prompts: Any, **settings: object) -> Any:
        from vila_core.engine.completion import Completion, Timings, Usage

        for prompt in prompts:
            if prompt is not None:
                yield Completion((prompt.text.split()[-1],), [7], "stop", Usage(5, 0, 1), Timings(0, 0, 0, 0))


@dataclass
class Words:
    """Rows made as they are asked for."""

    count: int = 11
    origin: Mapping[str, str] = field(default_factory=lambda: {"dataset": "words"})
    description: str = "words"
    fails: bool = False

    def open(self, options: DataOptions) -> "Words":
        if self.fails:
            raise DataError("The words are gone.")
        return self

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        return {"text": f"say word{index}", "answer": f"word{index}"}

    def locate(self, path: str) -> Path:
        return Path(path)


def ask(row: Row) -> Question:
    return Question("", [row["text"]], row["answer"])


WORDS = Task("words", Words(), ask, EXACT_MATCH)


def options(folder: Path, **changes: Any) -> RunOptions:
    return RunOptions(folder, DataOptions(folder / "cache", fixtures=True), **({"batch_size": 2} | changes))


def planned(*tasks: Task) -> list[Planned]:
    return [Planned(task, task.name) for task in tasks]


def same_files(first: Path, second: Path, *names: str) -> None:
    for name in names:
        for file in ("results.json", "samples.jsonl"):
            assert (first / "vila-tiny" / name / file).read_bytes() == (
                second / "vila-tiny" / name / file
            ).read_bytes(), (name, file)


def test_two_workers_agree_with_one_sample_by_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    count = next(task for task in DRAWN_WORLD if task.name == "vila/count")
    plan = planned(replace(count, source=DrawnWorld("count", samples=16)), POPE)
    for workers in (1, 2):
        outcomes = evaluate(
            ModelOptions(), plan, options(tmp_path / str(workers), workers=workers, batch_size=4), NoProgress()
        )
        assert [outcome.error for outcome in outcomes] == [None, None]
    same_files(tmp_path / "1", tmp_path / "2", "vila/count", "pope")
    assert not list(tmp_path.rglob("answers-*"))
    assert not list(tmp_path.rglob("failed-*"))


def ranks(folder: Path, *tasks: Task, world_size: int = 3, **changes: Any) -> dict[int, list[TaskOutcome]]:
    """Run every rank of a launcher, here in threads."""
    outcomes: dict[int, list[TaskOutcome]] = {}

    def run(rank: int) -> None:
        place = Rank(rank, world_size, rank)
        outcomes[rank] = evaluate(
            ModelOptions(device="cpu"), planned(*tasks), options(folder, **changes), NoProgress(), place
        )

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a rank waits for ever"
    return outcomes


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyModel, "get", lambda self: Echo())


@pytest.mark.usefixtures("echo")
def test_the_ranks_of_a_launcher_share_the_work_and_rank_0_scores(tmp_path: Path) -> None:
    others = replace(WORDS, name="others", source=Words(5))
    evaluate(ModelOptions(), planned(WORDS, others), options(tmp_path / "alone"), NoProgress())
    outcomes = ranks(tmp_path / "ranks", WORDS, others)
    assert [outcome.result is not None for outcome in outcomes[0]] == [True, True]
    assert {outcome.waiting for rank in (1, 2) for outcome in outcomes[rank]} <= {"rank 0", None}
    same_files(tmp_path / "alone", tmp_path / "ranks", "words", "others")
    again = ranks(tmp_path / "ranks", WORDS, others)
    assert [outcome.result for outcome in again[0]] == [outcome.result for outcome in outcomes[0]]


@pytest.mark.usefixtures("echo")
def test_ranks_go_on_from_answers_of_another_number_of_workers(tmp_path: Path) -> None:
    evaluate(ModelOptions(), planned(WORDS), options(tmp_path / "alone"), NoProgress())
    evaluate(ModelOptions(), planned(WORDS), options(tmp_path / "ranks", phase="predict"), NoProgress())
    file = tmp_path / "ranks/vila-tiny/words/answers-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]).replace('"key": "', '"key": "stale', 1) + lines[5][:20])
    ranks(tmp_path / "ranks", WORDS)
    same_files(tmp_path / "alone", tmp_path / "ranks", "words")


@pytest.mark.usefixtures("echo")
def test_ranks_start_anew_together(tmp_path: Path) -> None:
    ranks(tmp_path, replace(WORDS, version=2))
    refused = ranks(tmp_path, WORDS)
    assert all("task_version was 2 and is 1" in str(outcomes[0].error) for outcomes in refused.values())
    forced = ranks(tmp_path, WORDS, force=True)
    assert forced[0][0].result is not None
    assert forced[0][0].result.task_version == 1


@pytest.mark.usefixtures("echo")
def test_a_rank_that_cannot_open_the_data_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Words] = []

    def open_once(self: Words, options: DataOptions) -> Words:
        opened.append(self)
        if len(opened) == 2:
            raise DataError("The words are gone.")
        return self

    monkeypatch.setattr(Words, "open", open_once)
    outcomes = ranks(tmp_path, WORDS, world_size=2)
    assert ["The words are gone." in str(of_rank[0].error) for of_rank in outcomes.values()] == [True, True]


def test_a_launcher_and_workers_exclude_one_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--workers"):
        evaluate(ModelOptions(), planned(WORDS), options(tmp_path, workers=2), NoProgress(), Rank(0, 2, 0))


def works(folder: Path, count: int = 1) -> list[Work]:
    plan = Planned(WORDS, "words")
    job = open_job(plan, folder / "words", ModelOptions(), NOBODY, options(folder))
    return plan_work(ModelOptions(), options(folder), folder, [job], count)


def test_a_worker_that_dies_is_named_with_its_reason(tmp_path: Path) -> None:
    (whole,) = works(tmp_path)
    group = Processes([whole, replace(whole, rank=Rank(1, 2, 1), current_folder=str(tmp_path / "missing"))])
    os.kill(group.pids[0], signal.SIGKILL)
    try:
        with pytest.raises(WorkerError, match=r"Worker 0 was killed by SIGKILL\. It left no reason"):
            wait_for(group)
    finally:
        group.stop()
    group = Processes([replace(whole, current_folder=str(tmp_path / "missing"))])
    try:
        with pytest.raises(WorkerError, match=r"(?s)Worker 0 ended with exit code 1\..*FileNotFoundError"):
            wait_for(group)
    finally:
        group.stop()


def wait_for(group: Processes) -> None:
    for _ in range(3000):
        if group.check():
            return
        time.sleep(0.1)


def test_a_task_that_cannot_be_sent_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    unnamed = replace(WORDS, ask=lambda row: ask(row))
    (outcome,) = evaluate(ModelOptions(), planned(unnamed), options(tmp_path, workers=2), NoProgress())
    assert outcome.error is not None
    assert "'words' cannot be sent to a worker" in outcome.error


@pytest.mark.usefixtures("echo")
def test_a_worker_that_fails_at_one_task_goes_on_with_the_next(tmp_path: Path) -> None:
    (one,) = works(tmp_path)
    manifest = open_job(Planned(WORDS, "words"), tmp_path / "words", ModelOptions(), NOBODY, one.options).manifest
    lazy = LazyModel(ModelOptions())
    answer_task(one, Planned(replace(WORDS, source=Words(fails=True)), "words"), manifest, lazy)
    assert read_failures(tmp_path / "words") == {"failed-0.txt": "The words are gone."}
    answer_task(one, Planned(replace(WORDS, source=Words(12)), "more"), manifest, lazy)
    assert "changed while the run started" in read_failures(tmp_path / "more")["failed-0.txt"]


def test_a_model_that_cannot_be_loaded_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        evaluate(ModelOptions(str(tmp_path / "empty")), planned(WORDS), options(tmp_path / "results"), NoProgress())
    with pytest.raises(ConfigError, match="into the model's own folder"):
        evaluate(ModelOptions(str(tmp_path / "empty")), planned(WORDS), options(tmp_path), NoProgress())


class FakeRay(ModuleType):
    """As much of Ray as is used, its tasks run at once in this process. The real one was tried by hand."""

    class exceptions:  # noqa: N801 - Ray's own name
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: list[dict[str, Any]] = []
        self.stopped = False

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings: Any) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, "GPU": 2.0}

    def remote(self, **resources: Any) -> Any:
        self.asked.append(resources)

        def wrap(function: Any) -> Any:
            def run(argument: Work) -> Any:
                try:
                    return "ended", function(argument)
                except (VilaError, OSError) as error:
                    return "failed", error

            return SimpleNamespace(remote=run)

        return wrap

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks, []

    def get(self, task: Any) -> None:
        if task[0] == "failed":
            raise self.exceptions.RayError("a long traceback") from task[1]

    def cancel(self, task: Any, force: bool) -> None:
        pass

    def shutdown(self) -> None:
        self.stopped = True


@pytest.mark.usefixtures("echo")
def test_ray_tasks_answer_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)  # they are this process's own
    evaluate(ModelOptions(), planned(WORDS), options(tmp_path / "alone"), NoProgress())
    (outcome,) = evaluate(ModelOptions(), planned(WORDS), options(tmp_path / "ray", workers=3, ray=True), NoProgress())
    assert outcome.result is not None
    same_files(tmp_path / "alone", tmp_path / "ray", "words")
    assert (ray.asked[0]["num_gpus"], ray.stopped) == (1, True)
    (whole,) = works(tmp_path / "broken")
    broken = RayWorkers([replace(whole, current_folder=str(tmp_path / "missing"))])
    with pytest.raises(WorkerError, match=r"(?s)Worker 0 failed on Ray\..*FileNotFoundError"):
        broken.check()


@pytest.mark.usefixtures("echo")
def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vila-eval\[ray\]'"):
        evaluate(ModelOptions(), planned(WORDS), options(tmp_path, ray=True), NoProgress())


PARENT = """
import sys, time
from pathlib import Path
from vila_eval.running.processes import Processes
from vila_eval.running.workers import Work
from vila_eval.options import ModelOptions, Rank, RunOptions
from vila_eval.data.sources import DataOptions

class Sleep:
    def __reduce__(self):
        return time.sleep, (600,)

if __name__ == "__main__":
    import pickle
    folder = Path(sys.argv[1])
    options = RunOptions(folder, DataOptions(folder))
    group = Processes([Work(ModelOptions(), options, folder, Rank(0, 1, 0), (), str(folder), pickle.dumps(Sleep()))])
    print(group.pids[0], flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(3000):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
