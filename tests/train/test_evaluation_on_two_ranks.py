"""Rank 0 evaluates, the others wait. A file of its own: processes are forked before anything has run here."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.train.loop_runs import in_processes, micro_config, read_losses
from tests.train.test_evaluation_in_training import Words, evaluations

import vila_core as vila
from vila_core.plugins.registry import Owner, Registered, Registry
from vila_train.evaluation import evaluator as evaluation


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_evaluate_once_and_train_as_they_would(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    tasks = Registry("task", {"words": Registered(Words(), Owner("test", "test", "1"))})
    monkeypatch.setattr(evaluation, "load_plugins", lambda: SimpleNamespace(tasks=tasks))
    plain = micro_config(micro_checkpoint, **{"compute.precision": precision})
    assert in_processes(plain, tmp_path / "plain", tmp_path / "plain.txt", ranks=2) == [0, 0]
    changes = {"compute.precision": precision, "evaluation.tasks": ("words",), "evaluation.every": 4}
    out = tmp_path / "run"
    assert in_processes(micro_config(micro_checkpoint, **changes), out, tmp_path / "run.txt", ranks=2) == [0, 0]
    assert read_losses(tmp_path / "run.txt") == read_losses(tmp_path / "plain.txt")
    dtype = "float32" if precision == "fp32" else "bfloat16"
    answer = vila.load(out / "model", device="cpu", dtype=dtype).generate("red blue green", max_new_tokens=5)
    assert evaluations(out)[-1] == (6, {"words/length": len(answer)})
    assert [step for step, _ in evaluations(out)] == [4, 6]
