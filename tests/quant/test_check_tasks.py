"""`vila-quant check --tasks`: benchmarks of both models through the command that vila-eval registers."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.quant.conftest import tensors_of, with_tensors
from torch import Tensor

from vila_core.checkpoint import Checkpoint, convert
from vila_core.checkpoint.embedded import embedded_model
from vila_core.plugins.loader import load_plugins
from vila_quant.checking.tasks import compare_tasks
from vila_quant.cli.main import main

pytestmark = pytest.mark.skipif("eval" not in load_plugins().commands, reason="vila-eval is not installed")


def check(tmp_path: Path, model: Checkpoint, *arguments: str) -> int:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle and a blue square")
    given = [
        "--prompts",
        str(prompts),
        "--results",
        str(tmp_path / "results"),
        "--limit",
        "3",
        "--device",
        "cpu",
        "--offline",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["check", str(model.path), "--against", str(embedded_model()), *given, *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_scores_of_both_models_are_printed_side_by_side(
    awq_tiny: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = convert(awq_tiny, tmp_path / "out", "awq")
    assert check(tmp_path, made, "--tasks", "vila/count,vila/size") == 0
    words = capfd.readouterr().out.split()
    for task in ("vila/count", "vila/size"):
        name, measure, *shares = words[words.index(task) :][:4]
        assert (name, measure) == (task, "exact_match")
        assert all(0 <= float(share) <= 100 for share in shares)


@pytest.mark.slow
def test_answers_of_another_model_in_the_same_folder_are_not_reused(awq_tiny: Checkpoint, tmp_path: Path) -> None:
    made = convert(awq_tiny, tmp_path / "out", "awq")
    assert check(tmp_path, made, "--tasks", "vila/count") == 0

    shutil.rmtree(made.path)
    lost: dict[str, Tensor | None] = {
        name: torch.zeros_like(tensors_of(awq_tiny)[name]) for name in ["llm.model.norm.weight"]
    }
    made = convert(with_tensors(awq_tiny, lost), tmp_path / "out", "awq")
    results = tmp_path / "results"
    (change,) = compare_tasks(
        embedded_model(), made.path, ["vila/count"], results, limit=3, device="cpu", dtype="auto", offline=True
    )
    assert change.before > change.after == 0.0
    assert change.difference == pytest.approx(-change.before)
    assert change.samples == 3


def test_a_misspelled_task_is_reported_before_the_models_run(
    awq_tiny: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, awq_tiny, "--tasks", "vila/cuont") == 2
    shown = capfd.readouterr().err
    assert "Unknown task or tag 'vila/cuont'. Did you mean 'vila/count'" in shown
    assert "Running the original" not in shown


def test_without_vila_eval_the_command_says_what_to_install(
    awq_tiny: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VILA_PLUGINS", "quant,train")
    assert check(tmp_path, awq_tiny, "--tasks", "vila/count") == 2
    assert "--tasks needs 'vila-eval', which is not installed. Run: pip install 'vila-eval'" in capfd.readouterr().err
