"""The sampler against the logits processors of transformers, and the limits of every setting."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import GenerationError
from vila_core.language.paged_rows import RowSampling, StepKind, StepRows
from vila_core.ops.reference import choose_tokens, kept_tokens

CPU = torch.device("cpu")


def some_logits(rows: int, vocab_size: int = 61, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(rows))


class Rows:
    """Chooses tokens for rows with one config, as a step does."""

    def __init__(self, config: GenerationConfig, rows: int, vocab_size: int, seeds: Sequence[int] | None = None):
        self._rows = StepRows.allocate(rows, 1, vocab_size, CPU)
        settings = config.temperature, config.top_k, config.top_p
        penalties = config.repetition_penalty, config.presence_penalty, config.frequency_penalty
        biases = tuple(config.logit_bias.items())
        sampling = [RowSampling(*settings, seed, *penalties, biases) for seed in seeds or [config.seed or 0] * rows]
        for row, one in enumerate(sampling):
            self._rows.start(row, 5, [0], one)
        self._kind = StepKind.of(sampling)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """`[B, V]` -> `[B]`"""
        return self._rows.choose(choose_tokens, logits, self._kind, ahead=1)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [*itertools.product((0.3, 1.0, 1.7), (0, 1, 7, 61, 500), (1.0, 0.9, 0.3)), (1.0, 0, 1e-6)],
)
def test_the_kept_tokens_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = some_logits(5)
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    kept = torch.stack([kept_tokens(row / temperature, top_k, top_p) for row in logits])
    assert torch.equal(kept, ~expected.isinf())


def test_top_k_keeps_ties() -> None:
    assert kept_tokens(torch.tensor([1.0, 2.0, 2.0, 0.0]), 1, 1.0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.4])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    logits = some_logits(3)
    rows = Rows(GenerationConfig(repetition_penalty=penalty), 3, 61)
    generated = torch.empty(3, 0, dtype=torch.int64)
    for _ in range(40):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(generated, logits.clone()).argmax(-1)
        chosen = rows(logits)
        assert torch.equal(chosen, expected)
        generated = torch.cat((generated, chosen[:, None]), dim=1)


def test_tokens_that_were_chosen_are_penalized() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0], [-1.0, -1.5, -3.0]])
    rows = Rows(GenerationConfig(repetition_penalty=2.0), 2, 3)
    assert [rows(logits).tolist() for _ in range(4)] == [
        [0, 0],
        [1, 1],
        [2, 0],
        [0, 0],
    ]  # then 2.5, 2, 1.5 and -2, -3, -3
    assert logits[0, 0] == 5.0


def openai_penalties(logits: torch.Tensor, answer: Sequence[int], presence: float, frequency: float) -> torch.Tensor:
    """`mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence` (OpenAI's guide, "Frequency and
    presence penalties"), for one row `[V]`."""
    changed = logits.clone()
    for token_id in range(len(logits)):
        count = list(answer).count(token_id)
        changed[token_id] = logits[token_id] - count * frequency - float(count > 0) * presence
    return changed


@pytest.mark.parametrize("frequency", [-2.0, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("presence", [-1.0, 0.0, 0.7, 2.0])
def test_presence_and_frequency_penalties_are_those_of_openai(presence: float, frequency: float) -> None:
    logits = some_logits(3, 11, scale=1.0)
    rows = Rows(GenerationConfig(presence_penalty=presence, frequency_penalty=frequency), 3, 11)
    answers: list[list[int]] = [[], [], []]
    for _ in range(25):
        expected = [
            int(openai_penalties(row, answer, presence, frequency).argmax())
            for row, answer in zip(logits, answers, strict=True)
        ]
        assert rows(logits).tolist() == expected
        for answer, token_id in zip(answers, expected, strict=True):
            answer.append(token_id)


def test_all_penalties_together_come_in_their_order() -> None:
    """The repetition penalty scales the model's logits; the others are added to the result."""
    config = GenerationConfig(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={2: 1.0})
    rows = Rows(config, 1, 3)
    logits = torch.tensor([[4.0, 3.0, -0.5]])
    assert [rows(logits).item() for _ in range(6)] == [0, 1, 0, 0, 0, 1]
    # 4, 3, 0.5 -> 1.25, 3, 0.5 -> 1.25, 0.75, 0.5 -> 1, .75, .5 -> .75, .75, .5 (the first of equals) -> .5, .75, .5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_bans_and_forces_tokens(temperature: float) -> None:
    logits = some_logits(2, 11)
    best = logits.argmax(-1).tolist()
    banned = Rows(GenerationConfig(temperature=temperature, logit_bias=dict.fromkeys(best, -100)), 2, 11)
    forced = Rows(GenerationConfig(temperature=temperature, logit_bias={5: 100}), 2, 11)
    for _ in range(20):
        assert not set(best) & set(banned(logits).tolist())
        assert forced(logits).tolist() == [5, 5]


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    """A row that another request with a bias has left, beside a row with penalties."""
    logits = some_logits(2, 11)
    rows = StepRows.allocate(2, 1, 11, CPU)
    rows.start(0, 5, [0], RowSampling(logit_bias=((3, 100.0),), presence_penalty=2.0))
    rows.start(0, 5, [0], RowSampling())
    penalized = RowSampling(presence_penalty=2.0, frequency_penalty=2.0)
    rows.start(1, 5, [0], penalized)
    kind = StepKind.of([RowSampling(), penalized])
    chosen = [rows.choose(choose_tokens, logits, kind, ahead=1).tolist() for _ in range(4)]
    assert [row[0] for row in chosen] == [int(logits[0].argmax())] * 4
    assert len({row[1] for row in chosen}) > 1


def test_a_biased_token_that_a_grammar_forbids_stays_forbidden() -> None:
    rows = StepRows.allocate(1, 1, 11, CPU)
    sampling = RowSampling(logit_bias=((3, 100.0),))
    rows.start(0, 5, [0], sampling)
    rows.allow(0, torch.tensor([0b10000], dtype=torch.int32))
    assert rows.choose(choose_tokens, some_logits(1, 11), StepKind.of([sampling], masks=True), ahead=1).tolist() == [4]


def test_draws_follow_the_distribution() -> None:
    config = GenerationConfig(temperature=0.8, top_k=6, seed=12)
    logits = some_logits(1, 11, scale=1.0)
    rows, n = Rows(config, 1, 11), 6000
    counts = torch.bincount(torch.cat([rows(logits) for _ in range(n)]), minlength=11)
    scaled = logits[0] / 0.8
    expected = scaled.masked_fill(~kept_tokens(scaled, 6, 1.0), -torch.inf).softmax(-1)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts[kept] - n * expected[kept]) ** 2 / (n * expected[kept])).sum()
    assert chi_square < 20.5  # the 99.9 % quantile for five degrees of freedom


def test_a_row_samples_the_same_tokens_in_any_batch() -> None:
    config = GenerationConfig(temperature=1.0, top_p=0.95, seed=77)
    logits = some_logits(4)
    batch = Rows(config, 4, 61)
    singles = [Rows(config, 1, 61) for _ in range(4)]
    for _ in range(10):
        assert batch(logits).tolist() == [one(row[None]).item() for one, row in zip(singles, logits, strict=True)]


def test_rows_with_other_seeds_are_independent() -> None:
    draws = Rows(GenerationConfig(temperature=1.0), 64, 1000, range(64))(some_logits(1, 1000, 0.1).expand(64, -1))
    assert draws.unique().numel() > 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_fp32(dtype: torch.dtype) -> None:
    logits = some_logits(2).to(dtype)
    config = GenerationConfig(temperature=0.7, top_p=0.9, seed=1)
    assert Rows(config, 2, 61)(logits).tolist() == Rows(config, 2, 61)(logits.float()).tolist()


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
        ({"presence_penalty": 2.1}, r"'presence_penalty' must be 2 or less, got 2.1"),
        ({"presence_penalty": -2.5}, r"'presence_penalty' must be -2 or more, got -2.5"),
        ({"frequency_penalty": float("nan")}, "'frequency_penalty'"),
        ({"frequency_penalty": "much"}, r"'frequency_penalty' must be a number, got 'much'"),
        ({"frequency_penalty": None}, "'frequency_penalty'"),
        ({"logit_bias": {5: 101}}, r"'logit_bias.5' must be 100 or less, got 101"),
        ({"logit_bias": {5: float("-inf")}}, "'logit_bias.5'"),
        ({"logit_bias": {5: float("nan")}}, "'logit_bias.5'"),
        ({"logit_bias": {5: None}}, "'logit_bias.5'"),
        ({"logit_bias": {-1: 1}}, "token ids cannot be negative"),
        ({"logit_bias": {2**40: 1}}, "token ids have at most 31 bits"),
        ({"logit_bias": {"cat": 1}}, "'logit_bias.cat"),
        ({"logit_bias": [5, 1]}, "expected a dict of token ids and numbers"),
        ({"logit_bias": 5}, "expected a dict of token ids and numbers"),
        ({"logit_bias": dict.fromkeys(range(1001), 1)}, "has 1,001 entries; the limit is 1,000"),
        ({"suppress_tokens": [1]}, "banned with logit_bias"),
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
    logits[0, 3:] = -1e30
    assert torch.equal(Rows(GenerationConfig(temperature=temperature, seed=0), 4, 61)(logits), logits.argmax(-1))


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
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"7": -100, 0: 100},
    )
    assert config.logit_bias == {7: -100, 0: 100}
    assert GenerationConfig(logit_bias=None).logit_bias == {}
    assert config.stop == ("x",)
    assert GenerationConfig.model_validate(config.model_dump()) == config
