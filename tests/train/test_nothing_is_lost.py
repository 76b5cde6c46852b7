"""Runs that are killed at bad moments, or lose their folder: what was saved stays, and the same command resumes."""

import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.train.loop_runs import Mixed, Recorder, in_processes, kill_at, micro_config, run, send_at
from tests.train.test_training_processes import kill_while_saving

from vila_core.checkpoint.tensors import shard_writer
from vila_core.errors import OutputError
from vila_train import run_folder
from vila_train.checkpoints import Checkpoints
from vila_train.evaluation.evaluator import Evaluator
from vila_train.loop import export, train
from vila_train.tracking.log import JsonLog


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def with_saving(config: Any, **changes: Any) -> Any:
    return config.model_copy(update={"saving": config.saving.model_copy(update=changes)})


def steps_of(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize("killed", ["before the first file", "while it is written"])
def test_a_run_that_is_killed_as_it_begins_begins_again(micro_checkpoint: Path, tmp_path: Path, killed: str):
    def before() -> None:
        if killed == "before the first file":
            run_folder.write_file = lambda *_: kill()
        else:
            Path.replace = lambda *_: kill()  # type: ignore[method-assign]

    config = micro_config(micro_checkpoint, max_steps=1)
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", before=before) == [-signal.SIGKILL]
    assert not (tmp_path / "run/run.yaml").exists()
    assert len(run(config, tmp_path / "run").records) == 1
    assert not [*(tmp_path / "run").glob(".*.part")]


@pytest.mark.filterwarnings("ignore:.*The checkpoint before it is used")
def test_a_damaged_later_checkpoint_does_not_cost_the_new_one(micro_checkpoint: Path, tmp_path: Path):
    """The run resumes before the damaged one, and saves in between."""
    config = micro_config(micro_checkpoint)
    expected = run(config, tmp_path / "whole").losses
    in_processes(config, tmp_path / "run", tmp_path / "losses", after=kill_at(5))
    (file,) = (tmp_path / "run/checkpoints/step-00000004").glob("*.distcp")
    file.write_bytes(b"damaged")
    config = with_saving(config, keep=1)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", after=send_at(3, signal.SIGTERM))
    assert steps_of(tmp_path / "run") == ["step-00000003", "step-00000004"]
    assert run(config, tmp_path / "run").losses == {step: expected[step] for step in (4, 5, 6)}
    assert steps_of(tmp_path / "run") == ["step-00000006"]


def test_half_a_checkpoint_is_removed_though_its_step_does_not_come_again(micro_checkpoint: Path, tmp_path: Path):
    config = micro_config(micro_checkpoint, **{"saving.every": 4})
    codes = in_processes(config, tmp_path / "run", tmp_path / "losses", before=kill_while_saving(1))
    assert codes == [-signal.SIGKILL]
    assert steps_of(tmp_path / "run") == [".step-00000004.part"]
    run(with_saving(config, every=5), tmp_path / "run")
    assert steps_of(tmp_path / "run") == ["step-00000005", "step-00000006"]


def test_a_kill_while_old_checkpoints_are_deleted(micro_checkpoint: Path, tmp_path: Path):
    def before() -> None:
        original = shutil.rmtree

        def rmtree(path: Any, **settings: Any) -> None:
            if Path(path).name.startswith("step-") and Path(path).exists():
                (path / "state.json").unlink()
                kill()
            original(path, **settings)

        shutil.rmtree = rmtree

    config = micro_config(micro_checkpoint, **{"saving.keep": 1})
    expected = run(config, tmp_path / "whole").losses
    assert in_processes(config, tmp_path / "run", tmp_path / "losses", before=before) == [-signal.SIGKILL]
    assert steps_of(tmp_path / "run") == ["step-00000002", "step-00000004"]
    assert run(config, tmp_path / "run").losses == {step: expected[step] for step in (5, 6)}
    assert steps_of(tmp_path / "run") == ["step-00000006"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_is_written(micro_checkpoint: Path, tmp_path: Path, number: int):
    def before() -> None:
        original, written = shard_writer.ShardWriter.write, []

        def write(self: Any, *arguments: Any) -> None:
            original(self, *arguments)
            written.append(1)
            if len(written) == 5:
                os.kill(os.getpid(), number)

        shard_writer.ShardWriter.write = write

    config = micro_config(micro_checkpoint, max_steps=2)
    codes = in_processes(config, tmp_path / "run", tmp_path / "losses", before=before)
    assert codes == [-number if number == signal.SIGKILL else 0]
    assert (tmp_path / "run/model").exists() is (number != signal.SIGKILL)
    assert run(config, tmp_path / "run").records == []
    assert (tmp_path / "run/model/config.json").is_file()
    assert not [*(tmp_path / "run").glob(".*.part")]


def test_a_kill_in_the_last_evaluation_costs_no_step(micro_checkpoint: Path, tmp_path: Path):
    """Nothing was saved before the last step."""
    config = micro_config(micro_checkpoint, **{"saving.every": None, "max_steps": 2})

    def die() -> None:
        Evaluator.is_due = lambda self, step, total: step == total  # type: ignore[method-assign]
        Evaluator.scores = lambda *_, **__: kill()  # type: ignore[method-assign,assign]

    assert in_processes(config, tmp_path / "run", tmp_path / "losses", before=die) == [-signal.SIGKILL]
    assert steps_of(tmp_path / "run") == ["step-00000002"]


class Evaluations(JsonLog):
    """Logs a run, and collects the steps of its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def on_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        super().on_evaluation(step, scores)
        self.steps.append(step)


def test_each_evaluation_is_done_once(micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped before one: it is done when the run resumes. Stopped after one: it is not done again."""
    monkeypatch.setattr(Evaluator, "is_due", lambda self, step, total: step % 2 == 0)
    monkeypatch.setattr(Evaluator, "scores", lambda *_, **__: {"loss": 1.0})
    config = micro_config(micro_checkpoint)

    def start(stop_after: int | None) -> list[int]:
        log = Evaluations()
        callbacks: list[Any] = [log] if stop_after is None else [log, Recorder(send_at(stop_after, signal.SIGTERM))]
        with contextlib.suppress(KeyboardInterrupt):
            train(config, tmp_path / "run", callbacks, order=Mixed(), device="cpu")
        return log.steps

    assert start(stop_after=2) == []
    assert start(stop_after=3) == [2]
    assert start(stop_after=None) == [4, 6]


def test_a_run_whose_folder_is_deleted_saves_all_that_resuming_needs(micro_checkpoint: Path, tmp_path: Path):
    config, out = micro_config(micro_checkpoint), tmp_path / "run"
    expected = run(config, tmp_path / "whole").losses

    def after(step: int) -> None:
        if step == 3:
            shutil.rmtree(out)
        if step == 5:
            kill()

    assert in_processes(config, out, tmp_path / "losses", after=after) == [-signal.SIGKILL]
    assert run(config, out).losses == {step: expected[step] for step in (5, 6)}


def test_a_run_writes_nothing_into_the_folder_of_another(micro_checkpoint: Path, tmp_path: Path):
    config, out = micro_config(micro_checkpoint), tmp_path / "run"

    def replace(step: int) -> None:
        if step == 3:
            shutil.rmtree(out)
            in_processes(config, out, tmp_path / "losses", after=kill_at(1))

    with pytest.raises(OutputError, match="was deleted or moved, and another run has begun there"):
        run(config, out, after=replace)
    assert not (out / "checkpoints").exists()


def test_a_complete_run_in_a_folder_that_cannot_be_written(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = micro_config(micro_checkpoint, max_steps=1)
    run(config, tmp_path / "run")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for place in ("write_file", "only_run"):
        monkeypatch.setattr(run_folder, place, refuse)
    assert train(config, tmp_path / "run", order=Mixed(), device="cpu") == tmp_path / "run/model"


@pytest.mark.parametrize("moment", ["while it is checked", "before it is read"])
@pytest.mark.filterwarnings("ignore:.*The checkpoint before it is used")
def test_a_checkpoint_that_a_run_at_work_deletes_is_not_missed(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    config = micro_config(micro_checkpoint, **{"saving.keep": 1})
    in_processes(config, tmp_path / "run", tmp_path / "losses", after=kill_at(5))
    first = tmp_path / "run/checkpoints/step-00000004"
    next_one = shutil.copytree(first, tmp_path / "next")
    run(config, tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step-00000006"
    shutil.move(newest, tmp_path / "step-00000006")
    shutil.move(next_one, first)
    place = "_read" if moment == "while it is checked" else "load_weights"
    original = getattr(Checkpoints, place)

    def interrupted(self: Checkpoints, *arguments: Any) -> Any:
        if first.exists():  # the run saves its next checkpoint
            shutil.move(tmp_path / "step-00000006", newest)
            shutil.rmtree(first)
        return original(self, *arguments)

    monkeypatch.setattr(Checkpoints, place, interrupted)
    export(tmp_path / "run", tmp_path / "model")
    for name in ("llm/model.safetensors", "mm_projector/model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "run/model" / name).read_bytes()
