"""`vila bench`: measurements, random weights of real shapes, limits and predictions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vila_core.bench import limits
from vila_core.bench import measure as measuring
from vila_core.bench.limits import Limits, measure_limits
from vila_core.bench.measure import Measurement, measure
from vila_core.bench.predictions import GPUS, MODELS, predict, predictions_markdown
from vila_core.bench.published import published
from vila_core.bench.random_model import WeightKind, checkpoint_of, random_checkpoint
from vila_core.bench.shapes import language_shape
from vila_core.bench.work import work_of
from vila_core.checkpoint import estimate, open_checkpoint
from vila_core.cli.main import main
from vila_core.errors import ConfigError
from vila_core.loading import load_checkpoint

CPU = torch.device("cpu")
NOTES = Path(__file__).parents[2] / "docs" / "performance.md"


def vila(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for a moment only."""
    monkeypatch.setattr(measuring, "SECONDS", 0.1)
    monkeypatch.setattr(limits, "READ_BYTES", {"cpu": 1 << 26})
    monkeypatch.setattr(limits, "SQUARE", {"cpu": 256})


def test_the_embedded_model_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert vila("bench", "vila-tiny", "--json", "--context", "40") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "vila-tiny"
    assert report["limits"]["bytes_per_second"] > 1e8
    assert report["limits"]["operations_per_second"] > 1e8
    decode, image, prefill = report["results"]
    assert [result["name"] for result in report["results"]] == ["decode", "first token", "prefill"]
    assert (decode["unit"], image["unit"], prefill["unit"]) == ("tokens/s", "s", "tokens/s")
    assert decode["answer_tokens"] >= 8
    assert 40 <= decode["tokens"] < 70
    assert 0 < image["value"] < 60
    assert prefill["value"] > decode["value"]
    for result in report["results"]:
        part = result["value"] / result["limit"]
        assert result["of_limit"] == pytest.approx(part if result["unit"] == "tokens/s" else 1 / part)


def test_the_table_names_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert vila("bench", "--context", "20", "--dtype", "fp32", "--device", "cpu") == 0
    shown = capsys.readouterr()
    assert "embedded demo model" in shown.err
    for part in ("vila-tiny", "float32", "limits measured now", "decode", "first token", "prefill", "GB/s"):
        assert part in shown.out


@pytest.mark.parametrize("weights", ["w4", "bf16"])
def test_models_of_random_weights_answer(weights: WeightKind) -> None:
    config = open_checkpoint("vila-tiny").config.model_copy(update={"dtype": "float32"})
    checkpoint = checkpoint_of(config, "tiny", weights)
    assert (checkpoint.quantization is not None) == (weights == "w4")
    model = load_checkpoint(checkpoint, device="cpu")
    assert "random weights" in repr(model)
    decode, image, prefill = measure(model, work_of(checkpoint, "float32"), Limits(1e10, 1e11), context=30)
    assert min(decode.value, image.value, prefill.value) > 0
    assert image.tokens > 30


def test_sizes_of_a_step_are_those_of_the_released_model() -> None:
    # Qwen2-7B: 7.616e9 parameters, 0.545e9 each in embedding and head.
    sixteen = work_of(random_checkpoint("nvila-8b", "bf16"), "bfloat16")
    assert sixteen.weight_bytes == pytest.approx(2 * (7.616e9 - 0.545e9), rel=2e-3)
    assert sixteen.weights == pytest.approx(7.616e9 - 2 * 0.545e9, rel=2e-3)
    assert sixteen.cache_bytes == 2 * 2 * 28 * 4 * 128
    assert sixteen.patches == 1024
    four = work_of(random_checkpoint("nvila-8b", "w4"), "float16")
    linears, head = 6.525e9, 0.545e9
    assert four.weight_bytes == pytest.approx(linears * (0.5 + 2.5 / 128) + 2 * head, rel=2e-3)
    tied = work_of(random_checkpoint("nvila-3b", "bf16"), "bfloat16")
    assert tied.weight_bytes == pytest.approx(2 * 3.086e9, rel=1e-2)
    assert estimate(random_checkpoint("vila1.5-40b", "bf16")).parameters == pytest.approx(40e9, rel=0.02)


def test_limits_follow_from_bytes_and_operations() -> None:
    work = replace(
        work_of(random_checkpoint("nvila-8b", "bf16"), "bfloat16"), weight_bytes=10**9, cache_bytes=10**5,
        weights=10**9, head_weights=0, tower_weights=10**8, projector_weights=0,
    )  # fmt: skip
    found = Limits(bytes_per_second=1e11, operations_per_second=1e13)
    assert work.step_seconds(1000, found) == pytest.approx(0.011)
    assert work.prefill_seconds(10, found) == pytest.approx(0.01)  # reading the weights takes longer
    assert work.prefill_seconds(1000, found) == pytest.approx(0.2)
    assert work.image_seconds(2, 242, 1000, found) == pytest.approx(0.2 + 2 * 2 * 1024 * 1e8 / 1e13)
    assert Measurement("decode", 50, 100, 1, 1).of_limit == 0.5
    assert Measurement("first token", 0.4, 0.1, 1, 1).of_limit == 0.25


def test_measured_limits_are_plausible() -> None:
    found = measure_limits(CPU, torch.float32)
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e8 < found.operations_per_second < 1e15


def test_predictions_stay_below_the_limit_of_memory() -> None:
    rows = predict()
    assert len(rows) == len(GPUS) * len(MODELS) * 2
    for row in rows:
        if row.limit is not None and row.predicted is not None:
            assert 0.2 * row.limit < row.predicted < 0.95 * row.limit
    fits = {(row.gpu, row.model, row.weights): row.predicted is not None for row in rows}
    assert fits["RTX 4090", "nvila-8b", "w4"]
    assert not fits["RTX 4090", "vila1.5-40b", "bf16"]
    assert not fits["A100 80GB", "vila1.5-40b", "bf16"]


def test_the_table_in_the_docs_is_the_one_that_is_computed() -> None:
    assert predictions_markdown(predict()) in NOTES.read_text(), (
        "paste: python -c 'from vila_core.bench.predictions import *; print(predictions_markdown(predict()))'"
    )


def test_predictions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert vila("bench", "--predict") == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown
    assert "RTX 4090" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert vila("bench", "--predict", "--json") == 0
    assert {"gpu", "model", "weights", "limit", "predicted", "published"} == set(json.loads(capsys.readouterr().out)[0])


# Source: VILA's README, TinyChat's decoding throughput and time to first token, batch 1.
@pytest.mark.parametrize(
    ("model", "weights", "quantity", "device", "value"),
    [
        ("nvila-8b", "w4", "decode", "NVIDIA GeForce RTX 4090", 162.7),
        ("nvila-8b", "w4", "decode", "NVIDIA A100-SXM4-80GB", 186.8),
        ("nvila-8b", "bf16", "decode", "Orin", 11.6),
        ("nvila-8b", "w4", "first token", "NVIDIA Jetson AGX Orin", 0.2748),
        ("nvila-8b", "w4", "decode", "NVIDIA H200", None),
        ("", "w4", "decode", "NVIDIA A100-SXM4-80GB", None),
    ],
)
def test_published_values(model: str, weights: str, quantity: str, device: str, value: float | None) -> None:
    assert published(model, weights, quantity, device) == value  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "nvila-9b"], "Unknown model shapes 'nvila-9b'. Known: nvila-0.5b"),
        (["--shapes", "nvila-8b", "--weights", "int3"], "Unknown kind of weights 'int3'"),
        (["--shapes", "nvila-8b", "vila-tiny"], "Give a model or --shapes, not both"),
        (["vila-tiny", "-m", "vila-tiny"], "named twice"),
        (["vila-tiny", "--context", "5000"], "--context is 5,000"),
        (["vila-tiny", "--device", "tpu"], "Unknown device 'tpu'"),
        (["vila-tiny", "--dtype", "int8"], "Unknown dtype 'int8'"),
        (["no/such-model", "--offline"], "no/such-model"),
        (["vila-tiny", "--context", "0"], "--context"),
    ],
)
def test_mistakes_get_one_line(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str) -> None:
    assert vila("bench", *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err


def test_shapes_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vila_core.placement.free_bytes", lambda device: 10**9)
    assert vila("bench", "--shapes", "vila1.5-40b", "--weights", "bf16", "--device", "cpu") == 2
    assert "VILA-1.5-40B, random weights needs 7" in capsys.readouterr().err


def test_unknown_shapes_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'nvila-8b'"):
        language_shape("nvila_8b")
