"""Evaluation inside the loop: tasks of vila-eval and of plugins, and the loss on held-out data."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.train.loop_runs import Mixed, micro_config, run

import vila_core as vila
from vila_core.errors import ConfigError, VilaError, VilaWarning
from vila_core.plugins.hookspecs import EvaluationTask
from vila_core.plugins.loader import load_plugins
from vila_core.plugins.registry import Owner, Registered, Registry
from vila_core.runtime import Vila
from vila_eval.data.sources import LocalFiles
from vila_eval.metrics.exact_match import EXACT_MATCH
from vila_eval.task import Question, Task
from vila_train.config import ModelConfig
from vila_train.evaluation import evaluator as evaluation
from vila_train.evaluation.live import live_model
from vila_train.models import OpenedModel, open_model


@dataclass
class Words:
    """A task that asks for one answer, and keeps what it saw."""

    name: str = "words"
    answers: list[str] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    training: list[bool] = field(default_factory=list)
    fail: BaseException | None = None

    def evaluator(
        self, cache: Path, *, limit: int | None = None, mirror: Path | None = None, offline: bool = False
    ) -> Callable[[Vila], Mapping[str, float]]:
        def score(model: Vila) -> Mapping[str, float]:
            if self.fail is not None:
                raise self.fail
            self.answers.append(model.generate("red blue green", max_new_tokens=5))
            self.logits.append(model.inspect("red blue green").logits)
            self.training.append(any(module.training for module in model.network.modules()))
            return {"length": float(len(self.answers[-1]))}

        return score


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Make a task known."""

    def register(task: Any) -> None:
        registered = Registered(task, Owner("test", "test", "1"))
        tasks = Registry("task", {**load_plugins().tasks.entries, task.name: registered})
        monkeypatch.setattr(evaluation, "load_plugins", lambda: SimpleNamespace(tasks=tasks))

    return register


def test_data_that_cannot_be_read_names_the_setting(
    register: Callable[[Any], None], micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(*_: Any, **__: Any) -> Any:
        raise VilaError("The dataset cannot be reached. Give its location with --data DIR.")

    task = Words()
    monkeypatch.setattr(task, "evaluator", unreachable)
    register(task)
    config = micro_config(micro_checkpoint, **{"evaluation.tasks": ("words",)})
    with pytest.raises(ConfigError, match=r"'words' cannot be opened: .* setting evaluation\.data stands for --data"):
        run(config, tmp_path / "run")


def evaluations(out: Path) -> list[tuple[int, dict[str, float | None]]]:
    records = [
        json.loads(line, parse_constant=pytest.fail) for line in (out / "evaluation.jsonl").read_text().splitlines()
    ]
    return [(record["step"], record["scores"]) for record in records]


@pytest.mark.parametrize(("precision", "recompute"), [("fp32", "none"), ("bf16", "full"), ("fp32", "linears")])
def test_the_answers_are_those_of_the_exported_model(
    micro_checkpoint: Path, tmp_path: Path, register: Callable[[Any], None], precision: str, recompute: str
) -> None:
    task = Words()
    register(task)
    changes = {"compute.precision": precision, "compute.activation_checkpointing": recompute}
    config = micro_config(micro_checkpoint, **{"evaluation.tasks": ("words",), "evaluation.every": 4, **changes})
    out = tmp_path / "run"
    run(config, out)
    assert [step for step, _ in evaluations(out)] == [4, 6]
    assert task.training == [False, False]
    dtype = "float32" if precision == "fp32" else "bfloat16"
    trained = vila.load(out / "model", device="cpu", dtype=dtype)
    assert task.answers[-1] == trained.generate("red blue green", max_new_tokens=5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_evaluation_changes_no_step(
    micro_checkpoint: Path, tmp_path: Path, register: Callable[[Any], None], precision: str
) -> None:
    register(Words())
    changes = {"compute.precision": precision, "adapter": {"rank": 4, "dropout": 0.3}}
    plain = run(micro_config(micro_checkpoint, **changes), tmp_path / "plain")
    changes |= {"evaluation.tasks": ("words",), "evaluation.every": 1}
    evaluated = run(micro_config(micro_checkpoint, **changes), tmp_path / "evaluated")
    assert evaluated.losses == plain.losses


def test_an_adapter_answers_too(micro_checkpoint: Path, tmp_path: Path, register: Callable[[Any], None]) -> None:
    task = Words()
    register(task)
    changes = {"adapter": {"rank": 8, "alpha": 64.0}, "optimizer.learning_rate": 0.05, "evaluation.tasks": ("words",)}
    run(micro_config(micro_checkpoint, **changes), tmp_path / "run")
    untrained = vila.load(micro_checkpoint, device="cpu", dtype="float32").inspect("red blue green").logits
    exported = vila.load(tmp_path / "run/model", device="cpu", dtype="float32").inspect("red blue green").logits
    torch.testing.assert_close(task.logits[0], exported, rtol=1e-4, atol=1e-4)
    assert (task.logits[0] - untrained).abs().max() > 0.1


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ConfigError("No rows."), SystemExit(4)])
def test_training_goes_on_if_an_evaluation_fails(
    micro_checkpoint: Path, tmp_path: Path, register: Callable[[Any], None], error: BaseException
) -> None:
    register(Words(fail=error))
    config = micro_config(micro_checkpoint, **{"evaluation.tasks": ("words",)})
    with pytest.warns(VilaWarning, match="The evaluation 'words' failed, and training continues"):
        recorder = run(config, tmp_path / "run")
    assert len(recorder.losses) == 6
    assert (tmp_path / "run" / "model").exists()


def test_a_score_that_is_not_finite_is_reported(
    micro_checkpoint: Path, tmp_path: Path, register: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Words()
    monkeypatch.setattr(task, "evaluator", lambda *_, **__: lambda model: {"length": float("nan")})
    register(task)
    config = micro_config(micro_checkpoint, **{"evaluation.tasks": ("words",), "max_steps": 1})
    with pytest.warns(VilaWarning, match=r"Evaluations are not finite: words/length \(nan\)"):
        run(config, tmp_path / "run")
    assert evaluations(tmp_path / "run") == [(1, {"words/length": None})]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("no_such_task", "Unknown task 'no_such_task'"),
        ("mmvet", "Training cannot evaluate on the task 'mmvet': it needs a judge"),
        ("plain", "has no method `evaluator`"),
        ("empty", "has no rows"),
        ("missing", "missing.jsonl"),
        ("unscored", "its answers are scored elsewhere"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_before_training(
    micro_checkpoint: Path, tmp_path: Path, register: Callable[[Any], None], task: str, message: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    columns = {"question": "string"}
    own = {
        "plain": SimpleNamespace(name="plain"),
        "empty": Task("empty", LocalFiles(str(tmp_path / "empty.jsonl"), columns), as_question, EXACT_MATCH),
        "missing": Task("missing", LocalFiles(str(tmp_path / "missing.jsonl"), columns), as_question, EXACT_MATCH),
        "unscored": Task("unscored", LocalFiles(str(tmp_path / "empty.jsonl"), columns), as_question, None),
    }
    if task in own:
        register(own[task])
    with pytest.raises(vila.VilaError, match=message):
        run(micro_config(micro_checkpoint, **{"evaluation.tasks": (task,)}), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def as_question(row: Mapping[str, Any]) -> Question:
    return Question("", [row["question"]], answer=row.get("answer"))


@pytest.fixture(scope="module")
def tiny() -> OpenedModel:
    return open_model(ModelConfig(), seed=0)


def test_a_task_of_vila_eval_scores_the_live_model(tiny: OpenedModel, tmp_path: Path) -> None:
    """vila-tiny in training mode with a picture in each question; it solves this test (see docs/vila-tiny.md)."""
    task = load_plugins().tasks.get("vila/attribute")
    assert isinstance(task, EvaluationTask)
    tiny.network.train()
    with live_model(tiny) as model:
        scores = task.evaluator(tmp_path, limit=6)(model)
    assert scores["exact_match"] >= 5 / 6
    assert tiny.network.training
    assert all(module.training for module in tiny.network.modules())


def test_a_sample_without_its_picture_counts_as_wrong(tiny: OpenedModel, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "missing.png"}\n')

    def ask(row: Mapping[str, Any]) -> Question:
        return Question("", [vila.Image(tmp_path / row["question"]), "What?"], answer="a")

    task = Task("broken", LocalFiles(str(rows), {"question": "string"}), ask, EXACT_MATCH)
    with live_model(tiny) as model:
        assert task.evaluator(tmp_path)(model)["exact_match"] == 0


def test_the_weights_are_not_copied(tiny: OpenedModel) -> None:
    with live_model(tiny) as model:
        places = {parameter.data_ptr() for parameter in model.network.parameters()}
    assert places == {parameter.data_ptr() for parameter in tiny.network.parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_on_other_data_falls_with_that_of_training(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(evaluation, "open_mixture", lambda config, seed: Mixed(count=20))
    changes = {"evaluation.mixture": "other", "evaluation.every": 10, "compute.precision": precision, "max_steps": 20}
    out = tmp_path / "run"
    run(micro_config(micro_checkpoint, **changes), out)
    (_, first), (_, last) = evaluations(out)
    assert last["loss"] < first["loss"]


def test_the_held_out_loss_is_that_of_packed_loss(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained and evaluated on the same samples with a rate of almost nothing, both losses are the same."""
    monkeypatch.setattr(evaluation, "open_mixture", lambda config, seed: Mixed(count=4, damaged=99))
    changes = {"evaluation.mixture": "other", "optimizer.learning_rate": 1e-12, "max_steps": 1}
    changes |= {"data.packing": False, "data.rows_per_step": 4, "data.lanes": 4}
    out = tmp_path / "run"
    recorder = run(micro_config(micro_checkpoint, **changes), out, Mixed(count=4, damaged=99))
    ((_, scores),) = evaluations(out)
    assert scores["loss"] == pytest.approx(recorder.losses[1], rel=1e-5)


def test_an_unknown_mixture_is_refused_before_training(micro_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(vila.VilaError, match="no_such_data"):
        run(micro_config(micro_checkpoint, **{"evaluation.mixture": "no_such_data"}), tmp_path / "run")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_inference_leaves_nothing_that_training_cannot_use(tiny: OpenedModel) -> None:
    """A tensor made in inference mode and kept would fail in the next backward pass."""
    with live_model(tiny) as model:
        model.generate("What?", max_new_tokens=2)
    (prompt,) = [model.prepare("What?")]
    logits = tiny.network([prompt])[0]
    logits.sum().backward()
    assert tiny.network.llm.model.embed_tokens.weight.grad is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(torch.is_inference(buffer) for buffer in tiny.network.buffers())
