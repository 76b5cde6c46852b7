"""The embedded model in four bits gives the same answers alone, in a batch, with shared prefixes and in chunks."""

from pathlib import Path

import pytest

import vila_core as vila
from vila_core.checkpoint.embedded import embedded_model
from vila_core.intervals import wilson_interval
from vila_core.plugins.datasets import Sample
from vila_quant.quantizing.options import QuantizationOptions
from vila_quant.quantizing.pipeline import quantize_model
from vila_train.tiny.dataset import DrawnWorld

SAMPLES = 500
ALONE = vila.EngineConfig(shares_prefixes=False, media_cache_bytes=0, max_batch=1)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    world = DrawnWorld()
    tests = [name for name in world.subsets() if not name.startswith("caption")]
    return [world.sample("test", tests[number % len(tests)], number // len(tests)) for number in range(SAMPLES)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("w4") / "out"
    options = QuantizationOptions.model_validate({"search": "nearest", "sequences": 1, "sequence_length": 64})
    quantize_model(embedded_model(), out, options, device="cpu")
    return out


@pytest.fixture(scope="module")
def alone(checkpoint: Path, samples: list[Sample]) -> list[str]:
    model = vila.load(checkpoint, device="cpu", engine=ALONE)
    return [model.generate(list(sample.prompt), max_new_tokens=16) for sample in samples]


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        vila.EngineConfig(max_batch=16, shares_prefixes=False),
        vila.EngineConfig(max_batch=16),
        vila.EngineConfig(max_batch=16, chunk_tokens=64),
    ],
    ids=["a batch of 16", "shared prefixes", "chunks"],
)
def test_the_same_answers(checkpoint: Path, samples: list[Sample], alone: list[str], engine: vila.EngineConfig) -> None:
    model = vila.load(checkpoint, device="cpu", engine=engine)
    # Each prompt twice: the second time, its beginning is known.
    answers = [
        answer
        for start in range(0, SAMPLES, 50)
        for answer in model.generate_batch(
            [list(sample.prompt) for sample in samples[start : start + 50] for _ in range(2)], max_new_tokens=16
        )
    ]
    same = sum(answer == alone[number // 2] for number, answer in enumerate(answers))
    assert same >= 0.99 * 2 * SAMPLES, f"{same} of {2 * SAMPLES}"
    stats = model.engine.stats()
    assert (stats.pages_used, stats.cached_tokens > 0) == (0, engine.shares_prefixes)


@pytest.mark.slow
def test_as_right_as_the_model_it_was_made_from(samples: list[Sample], alone: list[str]) -> None:
    model = vila.load("vila-tiny", device="cpu")
    prompts = [list(sample.prompt) for sample in samples]
    right = sum(a == sample.answer for a, sample in zip(model.generate_batch(prompts), samples, strict=True))
    low, high = wilson_interval(right / SAMPLES, SAMPLES)
    ours = sum(a == sample.answer for a, sample in zip(alone, samples, strict=True)) / SAMPLES
    assert low - 0.03 <= ours <= high, (
        f"{ours:.3f} in four bits, {right / SAMPLES:.3f} ({low:.3f} to {high:.3f}) before"
    )


def test_answers_with_a_cache_in_8_bits(samples: list[Sample]) -> None:
    """Unquantized weights: what differs is the cache."""
    prompts = [list(sample.prompt) for sample in samples[:48]]
    usual, in_8_bits = (
        vila.load("vila-tiny", device="cpu", engine=engine).generate_batch(prompts, max_new_tokens=16)
        for engine in (vila.EngineConfig(), vila.EngineConfig(kv_cache_dtype="fp8"))
    )
    assert sum(one == other for one, other in zip(usual, in_8_bits, strict=True)) >= 46
