"""A KV cache in 8 bits: numbers, answers, prefixes, memory, and what it refuses."""

import pytest
import torch
from tests.core.answering import Text, some_ids
from tests.core.steered import SteeredDecoder

from vila_core.config import DecoderConfig
from vila_core.engine.answer import Generated
from vila_core.engine.engine import Engine
from vila_core.engine.limits import EngineConfig
from vila_core.engine.memory import num_pages, page_bytes
from vila_core.engine.runner_choice import require_cache_dtype
from vila_core.engine.sampling import GenerationConfig
from vila_core.errors import ConfigError
from vila_core.language.decoder import Decoder
from vila_core.language.page_size import PAGE_SIZE
from vila_core.language.paged_cache import PagedCache
from vila_core.ops import reference
from vila_core.ops.eight_bits import dequantize, quantize
from vila_core.tokenizer import Tokenizer

CPU = torch.device("cpu")


def config(**changes: object) -> DecoderConfig:
    settings: dict[str, object] = {
        "architecture": "qwen2", "vocab_size": 70, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "attention_bias": True, "max_length": 512,
    }  # fmt: skip
    return DecoderConfig.model_validate(settings | changes)


def model(**changes: object) -> Decoder:
    decoder = Decoder(config(**changes))
    decoder.reset_parameters(std=0.1, generator=torch.Generator().manual_seed(0))
    return decoder.requires_grad_(False)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(
    ("given", "scale", "expected"),
    [
        ([1.0, -0.5, 0.25], 2.0**-8, [1.0, -0.5, 0.25]),  # 448 · 2^-8 = 1.75 is the first that holds 1
        ([1.75, 1.0, 0.0], 2.0**-8, [1.75, 1.0, 0.0]),
        ([1.76, 1.0, 0.0], 2.0**-7, [1.75, 1.0, 0.0]),  # three digits after the first: steps of 1/8 from 1 on
        ([448.0, 1.0, 17.0], 1.0, [448.0, 1.0, 16.0]),  # a tie goes to the even code
        ([449.0, 1.0, 17.1], 2.0, [448.0, 1.0, 18.0]),
        ([448.0, 2.0**-9, 2.0**-10], 1.0, [448.0, 2.0**-9, 0.0]),  # the smallest code is 2^-9
        ([0.0, 0.0, 0.0], 2.0**-126, [0.0, 0.0, 0.0]),
        ([float("nan"), 3.0, float("inf")], 2.0**-7, [0.0, 3.0, 0.0]),
    ],
)
def test_numbers_in_8_bits(given: list[float], scale: float, expected: list[float]) -> None:
    codes, scales, numbers = quantize(torch.tensor([given]))
    assert codes.dtype == torch.uint8
    assert scales.tolist() == [scale]
    assert numbers.tolist() == [expected]
    assert dequantize(codes, scales, torch.float32).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1e-20, 1e-3, 1.0, 300.0, 6e4, 1e30])
def test_the_error_is_that_of_three_digits_at_any_magnitude(dtype: torch.dtype, magnitude: float) -> None:
    if magnitude > torch.finfo(dtype).max or magnitude < torch.finfo(dtype).tiny:
        pytest.skip("no number of this dtype")
    x = (randn(50, 3, 64).clamp(-4, 4) / 4 * magnitude).to(dtype)
    _, _, numbers = quantize(x)
    assert numbers.dtype == dtype
    assert relative_error(numbers, x) < 0.03
    large = x.abs() > magnitude / 1000
    assert ((numbers - x).double().abs() <= x.double().abs() / 16 * 1.01)[large].all()
    assert torch.equal(quantize(numbers)[2], numbers) or dtype == torch.float16


def test_the_largest_fp16_numbers_stay_finite() -> None:
    x = torch.tensor([[65504.0, -65504.0, 61441.0, 1.0]]).half()  # in steps of 4096
    assert quantize(x)[2].tolist() == [[65504.0, -65504.0, 61440.0, 1.0]]


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_attention_beside_fp64(spread: float) -> None:
    """Keys and values with a large first column, as those of Qwen2 have."""
    heads, kv_heads, width, length = 4, 2, 64, 300
    keys, values = randn(1, kv_heads, length, width, seed=1), randn(1, kv_heads, length, width, seed=2)
    keys[..., 0] = 40.0
    qkv = randn(1, (heads + 2 * kv_heads) * width, seed=3).double()
    qkv[:, : heads * width] *= spread / 3
    qkv.view(1, -1, width)[:, :heads, 0] *= 0.1
    cos, sin = torch.ones(length, width // 2).double(), torch.zeros(length, width // 2).double()
    position = torch.tensor([length - 1])
    given = qkv, cos, sin, position
    expected, _, _ = reference.decode_attention(*given, keys.double(), values.double())
    got, _, _ = reference.decode_attention(
        *given, quantize(keys)[2].double(), quantize(values)[2].double(), rounded=lambda x: quantize(x)[2]
    )
    assert relative_error(got, expected) < 0.05


@pytest.mark.parametrize("window", [None, 40])
def test_hidden_states_beside_the_cache_in_the_models_dtype(window: int | None) -> None:
    decoder, prompt = model(sliding_window=window), randn(1, 100, 128)
    hidden = []
    for in_8_bits in (False, True):
        cache = PagedCache.allocate(
            decoder.config, 20, page_size=16, device=CPU, dtype=torch.float32, in_8_bits=in_8_bits
        )
        rows = cache.rows(torch.tensor([[5, 2, 9, 0, 11, 3, 7]]))
        read = decoder(prompt[:, :90], cache=rows.up_to(90))
        steps = [
            decoder.decode_step(prompt[:, at : at + 1], torch.tensor([[at]]), rows.up_to(at + 1))
            for at in range(90, 100)
        ]
        hidden.append(torch.cat([read, *steps], dim=1))
    assert 0 < relative_error(hidden[1], hidden[0]) < 0.03


@pytest.mark.parametrize("chunks", [(100,), (64, 36), (1,) * 100, (17, 80, 3)])
def test_hidden_states_do_not_depend_on_how_a_prompt_is_read(chunks: tuple[int, ...]) -> None:
    decoder, prompt = model(), randn(1, 100, 128)
    expected, start, parts = None, 0, []
    for of in ((100,), chunks):
        cache = PagedCache.allocate(decoder.config, 9, page_size=16, device=CPU, dtype=torch.float32, in_8_bits=True)
        rows, start, parts = cache.rows(torch.tensor([[5, 2, 8, 0, 1, 3, 7]])), 0, []
        for count in of:
            end = start + count
            positions = torch.arange(start, end)[None] if start else None
            parts.append(decoder(prompt[:, start:end], positions=positions, cache=rows.up_to(end)))
            start = end
        if expected is None:
            expected = torch.cat(parts, dim=1)
    # Rounding to codes may turn differences of the last digit into those of a code, in few places.
    assert relative_error(torch.cat(parts, dim=1), expected) < 3e-3


def engine_of(decoder: Decoder, tokenizer: Tokenizer, **settings: object) -> Engine:
    config = EngineConfig.model_validate({"kv_cache_dtype": "fp8", "cache_bytes": 1 << 20, "max_batch": 4} | settings)
    return Engine(decoder, tokenizer, frozenset(), config)


def test_answers_with_shared_prefixes_in_batches_and_in_chunks(decoder: Decoder, tokenizer: Tokenizer) -> None:
    begin = some_ids(3 * PAGE_SIZE)
    prompts = [Text(decoder, [*begin, *some_ids(5 + 3 * seed, seed=seed)]) for seed in range(6)]
    greedy = GenerationConfig(max_new_tokens=12)
    alone = engine_of(decoder, tokenizer, shares_prefixes=False)
    expected = [alone.submit(prompt, greedy).result() for prompt in prompts]
    for settings in ({}, {"chunk_tokens": 64}, {"max_batch": 1}):
        answers = engine_of(decoder, tokenizer, **settings).answer_all(prompts, greedy)
        assert all(isinstance(one, Generated) for one in answers)
        found = [one for one in answers if isinstance(one, Generated)]
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        assert sum(one.cached_tokens for one in found) == 5 * 3 * PAGE_SIZE


def test_the_budget_holds_nearly_twice_as_many_tokens(decoder: Decoder, tokenizer: Tokenizer) -> None:
    half = model().to(torch.bfloat16)
    usual, small = (EngineConfig(cache_bytes=1 << 20, kv_cache_dtype=dtype) for dtype in ("auto", "fp8"))
    assert page_bytes(half, usual) == 64 * 2 * 2 * 2 * 32 * 2  # tokens, keys and values, layers, heads, width, bytes
    assert page_bytes(half, small) == 64 * 2 * 2 * 2 * (32 + 2)
    assert num_pages(half, small) == (1 << 20) // page_bytes(half, small) > 1.8 * num_pages(half, usual)
    pages = 5
    cache = PagedCache.allocate(half.config, pages, device=CPU, dtype=torch.bfloat16, in_8_bits=True)
    assert cache.scales is not None
    held = sum(tensor.nbytes for tensor in (cache.keys, cache.values, *cache.scales))
    assert held == pages * page_bytes(half, small)
    engine = engine_of(decoder, tokenizer, cache_bytes=100_000)
    engine.submit(Text(decoder, some_ids(9)), GenerationConfig(max_new_tokens=1)).result()
    assert engine.stats().pages == 100_000 // page_bytes(decoder, engine.config)


def test_a_language_model_with_a_cache_of_its_own_is_refused(decoder: Decoder, tokenizer: Tokenizer) -> None:
    config = EngineConfig(kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match=r"kv_cache_dtype='fp8' needs a native decoder .*\(SteeredDecoder\) keeps a"):
        Engine(SteeredDecoder(decoder, lambda logits, _ids, _number: logits), tokenizer, frozenset(), config)
    with pytest.raises(ConfigError, match=r"is split over several devices\. Leave kv_cache_dtype at 'auto'"):
        require_cache_dtype(decoder, config, is_split=True)
    require_cache_dtype(decoder, config)


@pytest.mark.parametrize("value", ["int8", "fp16", "FP8", "", None, 8, "fp8_e5m2", "e4m3", True, "bfloat16"])
def test_an_unknown_format_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=f"^EngineConfig: kv_cache_dtype must be 'auto' or 'fp8', got {value!r}.$"):
        EngineConfig.model_validate({"kv_cache_dtype": value})
