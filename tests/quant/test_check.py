"""What `vila-quant check` says of a model that lost something known, and of one that lost nothing."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vila_core as vila
from vila_core.checkpoint import Checkpoint
from vila_core.checkpoint.embedded import embedded_model
from vila_core.errors import ConfigError, MissingDependencyError
from vila_quant.checking import tasks
from vila_quant.checking.check import CheckReport, Divergence, check
from vila_quant.checking.comparison import Compared
from vila_quant.checking.held_out import read_prompts
from vila_quant.checking.tasks import compare_tasks
from vila_quant.cli.main import app
from vila_quant.errors import QuantizationError

BLOCK = 2
"""Whose MLP the damaged model has lost."""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without the MLP of one block."""
    folder = tmp_path_factory.mktemp("models") / "damaged"
    shutil.copytree(embedded_model(), folder)
    file = folder / "llm" / "model.safetensors"
    weights = load_file(file)
    weights[f"model.layers.{BLOCK}.mlp.down_proj.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def report(damaged: Path) -> CheckReport:
    return check(damaged, embedded_model(), prompts="builtin", number=3)


def test_a_damaged_block_is_found_and_no_other(report: CheckReport) -> None:
    assert all(error < 1e-3 for number, error in enumerate(report.layers) if number != BLOCK)
    assert report.layers[BLOCK] > 0.1
    assert report.vision == 0.0
    assert report.sizes.before == report.sizes.after > 1e6


def test_answers_are_compared_with_and_without_media(report: CheckReport) -> None:
    assert report.text is not None
    assert report.multimodal is not None
    assert (report.text.prompts, report.multimodal.prompts) == (2, 1)
    for found in (report.text, report.multimodal):
        assert found.kl > 0.01
        assert found.top1_agreement < 1.0
        assert found.perplexity_before != found.perplexity_after


def test_perplexity_and_divergence_are_those_of_the_models_logits(damaged: Path, report: CheckReport) -> None:
    whole, lost = vila.load(), vila.load(damaged)
    kl = loss = tokens = 0.0
    for prompt in read_prompts(whole, "builtin", 3):
        if prompt.kind != "text":
            continue
        ids = torch.tensor(prompt.prepared.input_ids)
        with torch.inference_mode():
            before, after = (
                model.network([prompt.prepared])[0][:-1].double().log_softmax(-1) for model in (whole, lost)
            )
        kl += float((before.exp() * (before - after)).sum())
        loss -= float(before.gather(1, ids[1:, None]).sum())
        tokens += len(ids) - 1
    assert report.text is not None
    assert report.text.tokens == tokens
    assert report.text.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert report.text.perplexity_before == pytest.approx(math.exp(loss / tokens), rel=1e-3)


def test_answers_alone_are_judged_where_there_are_some(tmp_path: Path) -> None:
    model, file = vila.load(), tmp_path / "prompts.jsonl"
    rows = [{"prompt": "What is it?", "answer": "a red circle"}, {"prompt": "What is it?"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    answered, asked = sorted(read_prompts(model, str(file), 5), key=lambda prompt: prompt.scored)
    ids = answered.prepared.input_ids[-answered.scored :]
    assert model.tokenizer.decode(ids).startswith("a red circle")
    assert asked.scored == len(asked.prepared.input_ids) - 1
    assert asked.kind == "text"


def test_the_same_model_loses_nothing(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\fa blue square and a green one")
    result = CliRunner().invoke(
        app, ["check", str(embedded_model()), "--against", str(embedded_model()), "--prompts", str(prompts), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["text"]["prompts"] == 2
    assert found["text"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["text"]["top1_agreement"] == 1.0
    assert max(found["layers"]) < 1e-3
    assert found["multimodal"] is None
    assert found["vision"] is None
    assert found["tasks"] == []


def test_the_standard_error_is_over_prompts() -> None:
    """Two prompts of ten tokens with 1 and 3 nats a token: 2 ± 1."""
    compared = [Compared("text", 10, kl, 5, 10.0, 20.0) for kl in (10.0, 30.0)]
    found = Divergence.of(compared)
    assert found is not None
    assert found.kl == 2.0
    assert found.kl_standard_error == pytest.approx(1.0)
    assert found.top1_agreement == 0.5
    assert found.perplexity_before == pytest.approx(math.e)
    assert found.perplexity_after == pytest.approx(math.e**2)
    assert Divergence.of([]) is None
    single = Divergence.of(compared[:1])
    assert single is not None
    assert single.kl_standard_error is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(embedded_model(), folder)
    config = json.loads((folder / "llm" / "config.json").read_text())
    (folder / "llm" / "config.json").write_text(json.dumps({**config, "vocab_size": 2 * config["vocab_size"]}))
    with pytest.raises(ConfigError, match=r"was not made from .*--against"):
        check(folder, embedded_model(), prompts="builtin", number=1)


def test_swapped_models_are_refused(awq_tiny: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"is not quantized, and .* is\. Swap them"):
        check(embedded_model(), awq_tiny.path)


def test_a_misspelled_kernel_is_reported_before_a_model_runs(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vila_quant.checking.check.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=r"Unknown kernel 'refrence'.*Did you mean 'reference'"):
        check(damaged, embedded_model(), kernel="refrence")


def test_tasks_need_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        commands = frozenset({"convert"})

    monkeypatch.setattr(tasks, "load_plugins", Without)
    with pytest.raises(MissingDependencyError, match="pip install 'vila-eval'"):
        check("nowhere", embedded_model(), tasks=["vila/blocks"])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Of two models, "before" and "after": what is in them is not looked at."""
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    return tmp_path / "before", tmp_path / "after"


def test_tasks_are_compared_by_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    asked: list[list[str]] = []

    def answer(arguments: list[str]) -> dict[str, object]:
        asked.append(arguments)
        if arguments[0] == "compare":
            measure = {"name": "accuracy", "unit": "share", "first": 0.9, "second": 0.85, "difference": -0.05}
            tested = {**measure, "standard_error": 0.02, "p_value": 0.01}
            scored = arguments[1].endswith("t-8")
            return {"tasks": [{"task": "t", "measures": [tested] if scored else [], "paired": 40 if scored else 0}]}
        name = arguments[arguments.index("--model-name") + 1]
        written = {task: str(tmp_path / name / task) for task in ("t-8", "elsewhere", "unjudged")}
        rows = [
            {"task": task, "folder": folder, "error": None, "result": None if task == "unjudged" else {}}
            for task, folder in written.items()
        ]
        return {"tasks": rows, "report": None}

    monkeypatch.setattr(tasks, "_vila_eval", answer)
    names = ["t-8", "elsewhere", "unjudged"]
    (change,) = compare_tasks(*folders, names, tmp_path, limit=None, device="cpu", dtype="auto", offline=True)
    assert (change.task, change.before, change.after, change.standard_error, change.samples) == (
        "t-8",
        0.9,
        0.85,
        0.02,
        40,
    )
    assert [words[1] for words in asked[:2]] == [str(folder) for folder in folders]
    assert [words[1:3] for words in asked[2:]] == [
        [str(tmp_path / "original-before" / task), str(tmp_path / "quantized-after" / task)]
        for task in ("t-8", "elsewhere")
    ]


def test_a_failed_task_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    monkeypatch.setattr(
        tasks, "_vila_eval", lambda arguments: {"tasks": [{"task": "t", "error": "no data"}], "report": None}
    )
    with pytest.raises(QuantizationError, match=r"before could not be evaluated\. t: no data"):
        compare_tasks(*folders, ["t"], tmp_path, limit=None, device="cpu", dtype="auto", offline=False)
