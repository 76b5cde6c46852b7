"""Rank 0 evaluates, the others wait."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.train.loop_runs import in_processes, micro_config, read_losses
from tests.train.test_evaluation_in_training import Words, evaluations

import vila_core as vila
from vila_core.plugins.registry import Owner, Registered, Registry
from vila_train.evaluation import evaluator as evaluation


def with_words() -> None:
    """Let the task `Words` be the only one."""
    tasks = Registry("task", {"words": Registered(Words(), Owner("test", "test", "1"))})
    evaluation.load_plugins = lambda: SimpleNamespace(tasks=tasks)  # type: ignore[assignment,return-value]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_evaluate_once_and_train_as_they_would(
    micro_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    plain = micro_config(micro_checkpoint, **{"compute.precision": precision})
    assert in_processes(plain, tmp_path / "plain", tmp_path / "plain.txt", ranks=2) == [0, 0]
    changes = {"compute.precision": precision, "evaluation.tasks": ("words",), "evaluation.every": 4}
    out = tmp_path / "run"
    config = micro_config(micro_checkpoint, **changes)
    assert in_processes(config, out, tmp_path / "run.txt", ranks=2, before=with_words) == [0, 0]
    assert read_losses(tmp_path / "run.txt") == read_losses(tmp_path / "plain.txt")
    dtype = "float32" if precision == "fp32" else "bfloat16"
    answer = vila.load(out / "model", device="cpu", dtype=dtype).generate("red blue green", max_new_tokens=5)
    assert evaluations(out)[-1] == (6, {"words/length": len(answer)})
    assert [step for step, _ in evaluations(out)] == [4, 6]
