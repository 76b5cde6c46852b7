"""The sampler against the logits processors of transformers, and the limits of every setting."""

import itertools

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vila_core.engine.sampling import GenerationConfig, Sampler, distribution, penalize_repetition
from vila_core.errors import GenerationError

CPU = torch.device("cpu")


def some_logits(rows: int, vocab_size: int = 61, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [*itertools.product((0.3, 1.0, 1.7), (0, 1, 7, 61, 500), (1.0, 0.9, 0.3)), (1.0, 0, 1e-6)],
)
def test_distribution_equals_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = some_logits(5)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    got = distribution(logits, GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(got, expected.softmax(-1), atol=1e-6, rtol=1e-5)
    assert torch.equal(got == 0, expected.isinf())


def test_top_k_keeps_ties() -> None:
    probabilities = distribution(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), GenerationConfig(temperature=1.0, top_k=1))
    torch.testing.assert_close(probabilities, torch.tensor([[0.0, 0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.4])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    logits = some_logits(3)
    generated = torch.tensor([[4, 4, 9, 60], [0, 1, 2, 3], [8, 8, 8, 8]])
    seen = torch.zeros(3, 61, dtype=torch.bool).scatter_(1, generated, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(generated, logits.clone())
    torch.testing.assert_close(penalize_repetition(logits, seen, penalty), expected, atol=0, rtol=0)


def test_sampler_penalizes_the_tokens_it_has_chosen() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0], [-1.0, -1.5, -3.0]])
    sampler = Sampler(GenerationConfig(repetition_penalty=2.0), 2, CPU)
    assert [sampler(logits).tolist() for _ in range(4)] == [
        [0, 0],
        [1, 1],
        [2, 0],
        [0, 0],
    ]  # then 2.5, 2, 1.5 and -2, -3, -3
    assert logits[0, 0] == 5.0


def test_tiny_temperature_is_greedy_and_finite() -> None:
    logits = some_logits(4, scale=1e3)
    assert torch.equal(Sampler(GenerationConfig(temperature=1e-30, seed=0), 4, CPU)(logits), logits.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    config = GenerationConfig(temperature=0.8, top_k=6, seed=12)
    logits = some_logits(1, 11, scale=1.0)
    sampler, n = Sampler(config, 1, CPU), 6000
    counts = torch.bincount(torch.cat([sampler(logits) for _ in range(n)]), minlength=11)
    expected = distribution(logits, config)[0]
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts[kept] - n * expected[kept]) ** 2 / (n * expected[kept])).sum()
    assert chi_square < 20.5  # the 99.9 % quantile for five degrees of freedom


def test_a_row_samples_the_same_tokens_in_any_batch() -> None:
    config = GenerationConfig(temperature=1.0, top_p=0.95, seed=77)
    logits = some_logits(4)
    batch = Sampler(config, 4, CPU)
    singles = [Sampler(config, 1, CPU) for _ in range(4)]
    for _ in range(10):
        assert batch(logits).tolist() == [
            sampler(row[None]).item() for sampler, row in zip(singles, logits, strict=True)
        ]


def test_rows_without_a_seed_are_independent() -> None:
    draws = Sampler(GenerationConfig(temperature=1.0), 64, CPU)(torch.zeros(64, 1000))
    assert draws.unique().numel() > 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_fp32(dtype: torch.dtype) -> None:
    logits = some_logits(2).to(dtype)
    config = GenerationConfig(temperature=0.7, top_p=0.9, seed=1)
    assert Sampler(config, 2, CPU)(logits).tolist() == Sampler(config, 2, CPU)(logits.float()).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, r"'max_new_tokens' must be 1 or more, got 0"),
        ({"temperature": -0.1}, r"'temperature' must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "'temperature'"),
        ({"temperature": float("inf")}, "'temperature'"),
        ({"temperature": "hot"}, r"'temperature' must be a number, got 'hot'"),
        ({"top_k": -1}, r"'top_k' must be 0 or more, got -1"),
        ({"top_p": 0.0}, r"'top_p' must be more than 0, got 0.0"),
        ({"top_p": 1.1}, r"'top_p' must be 1 or less, got 1.1"),
        ({"repetition_penalty": 0.0}, r"'repetition_penalty' must be 0.01 or more, got 0.0"),
        ({"repetition_penalty": 1e30}, r"'repetition_penalty' must be 100 or less"),
        ({"temperature": 1e300}, r"'temperature' must be 1000000 or less"),
        ({"top_p": float("nan")}, "'top_p'"),
        ({"max_new_tokens": -(10**30)}, "'max_new_tokens'"),
        ({"seed": 10**40}, "'seed'"),
        ({"stop": "\ud800"}, "not valid Unicode"),
        ({"stop": [str(number) for number in range(100_000)]}, "has 100,000 entries; the limit is 1,000"),
        ({"stop": ["a" * 5000]}, "more than 1,000 characters"),
        ({"stop": itertools.count()}, "'stop' is count.*: expected a list"),
        ({"stop": [None]}, "'stop.0' must be a text"),
        ({"stop_token_ids": [2**70]}, "token ids have at most 31 bits"),
        ({"stop_token_ids": itertools.count()}, "expected a list"),
        ({"seed": -1}, "'seed'"),
        ({"seed": 2**63}, "'seed'"),
        ({"stop": ""}, "stop string is empty"),
        ({"stop": ["end", ""]}, "stop string is empty"),
        ({"stop": 3}, "'stop' is 3: expected a list"),
        ({"stop_token_ids": [-5]}, "token ids cannot be negative"),
        ({"json_schema": "{bad"}, "it is not JSON"),
        ({"json_schema": "[1]"}, "not a JSON object"),
        ({"json_schema": [1]}, "json_schema"),
        ({"temprature": 1.0}, r"Unknown generation setting 'temprature'.*Did you mean 'temperature'\?"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        GenerationConfig(**settings)


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-38])
def test_temperatures_that_are_zero_in_float32_are_greedy(temperature: float) -> None:
    logits = some_logits(4)
    logits[0, 3:] = -torch.inf  # masked by a grammar
    assert torch.equal(Sampler(GenerationConfig(temperature=temperature, seed=0), 4, CPU)(logits), logits.argmax(-1))


def test_one_message_names_every_wrong_setting() -> None:
    with pytest.raises(GenerationError) as caught:
        GenerationConfig(top_p=2.0, top_k=-3)
    assert "top_p" in str(caught.value)
    assert "top_k" in str(caught.value)


def test_settings_at_their_limits() -> None:
    config = GenerationConfig(
        max_new_tokens=1,
        temperature=0,
        top_p=1,
        top_k=0,
        seed=2**63 - 1,
        stop="x",
        json_schema='{"type": "object"}',
        json_mode=True,
    )
    assert config.stop == ("x",)
    assert GenerationConfig.model_validate(config.model_dump()) == config
