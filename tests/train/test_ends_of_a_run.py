"""What `vila-train run` and `sft` print when a run ends, is complete already, or is interrupted."""

import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.train.loop_runs import Mixed, micro_config

import vila_train.loop
from vila_core.cli.progress import ProgressLines
from vila_core.errors import OutputError
from vila_train.callbacks import NoCallback
from vila_train.cli.running import start
from vila_train.loop import train


def test_a_complete_run_is_not_reported_as_written(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config, out = micro_config(micro_checkpoint, max_steps=1), tmp_path / "run"
    monkeypatch.setattr(vila_train.loop, "train", lambda *args, **options: train(*args, order=Mixed(), **options))
    start(config, out, dry_run=False, accept_changes=False)
    assert f"Wrote {out / 'model'}." in capsys.readouterr().err
    start(config, out, dry_run=False, accept_changes=False)
    again = capsys.readouterr().err
    assert f"{out} holds a complete run, so nothing was done." in again
    assert "Wrote" not in again


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "No step was saved: the same command starts the run in"),
        (["checkpoints/step-00000002/x", "checkpoints/step-00000010/x"], "The same command resumes from step 10 in"),
        (["checkpoints/step-00000002/x", "model/config.json"], "The run is complete:"),
    ],
)
def test_an_interrupted_run_says_what_it_keeps(
    micro_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    message: str,
):
    def interrupted(*_: Any, **__: Any) -> Path:
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(vila_train.loop, "train", interrupted)
    with pytest.raises(typer.Exit) as ended:
        start(micro_config(micro_checkpoint), tmp_path, dry_run=False, accept_changes=False)
    assert ended.value.exit_code == 130
    assert message in capsys.readouterr().err


def test_done_is_printed_when_everything_is_written(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there: dict[str, tuple[bool, bool]] = {}
    out = tmp_path / "run"

    def report(lines: ProgressLines, message: str) -> None:
        files = out / "checkpoints" / "step-00000002" / "state.json", out / "model" / "config.json"
        there[message.partition(" ")[0]] = files[0].exists(), files[1].exists()

    monkeypatch.setattr(ProgressLines, "report", report)
    train(micro_config(micro_checkpoint, max_steps=2), out, order=Mixed(), device="cpu")
    assert there["2"] == (False, False)  # "2 steps", at the start
    assert there["done"] == (True, True)


@pytest.mark.parametrize("target", ["vila_train.checkpoints.save_tensors", "vila_train.loop.training.export_model"])
def test_a_run_that_cannot_write_its_end_is_not_done(
    target: str,
    micro_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("The disk is full.")

    monkeypatch.setattr(target, full)
    config = micro_config(micro_checkpoint, **{"max_steps": 2, "saving.every": None})
    with pytest.raises(OutputError, match="The disk is full"):
        train(config, tmp_path / "run", order=Mixed(), device="cpu")
    printed = capsys.readouterr().err
    assert "micro: stopped at 2 of 2" in printed
    assert "done" not in printed


class InterruptedAtItsEnd(NoCallback):
    """Gets a Ctrl-C while it draws the last plot."""

    reasons: list[str]

    def on_end(self, step: int, reason: str) -> None:
        self.reasons = [reason]
        signal.raise_signal(signal.SIGINT)
        self.reasons.append("continued")


def test_ctrl_c_at_the_end_leaves_a_complete_run(micro_checkpoint: Path, tmp_path: Path):
    callback = InterruptedAtItsEnd()
    model = train(micro_config(micro_checkpoint, max_steps=1), tmp_path / "run", [callback], order=Mixed())
    assert callback.reasons == ["finished", "continued"]
    assert (model / "config.json").is_file()
