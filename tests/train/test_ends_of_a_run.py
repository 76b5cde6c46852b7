"""What `vila-train run` and `sft` print when a run ends, is complete already, or is interrupted."""

import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.train.loop_runs import Mixed, micro_config

import vila_train.loop
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
