"""Warming up: all sizes that have graphs come, nothing is left behind, and answers stay the same."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import vila_core
from vila_core.config import DecoderConfig
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import TextPrompt
from vila_core.engine.limits import EngineConfig, EngineStats
from vila_core.engine.sampling import GenerationConfig
from vila_core.engine.warming import warm_up
from vila_core.language import paged_prefill
from vila_core.language.capturing import capture
from vila_core.language.decoder import Decoder
from vila_core.tokenizer import Tokenizer


@pytest.fixture
def model() -> vila_core.Vila:
    return vila_core.load("vila-tiny", device="cpu", engine=EngineConfig(max_batch=3, chunk_tokens=64))


def asked(model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that will hold the lengths of the prompts that come together."""
    found: list[list[int]] = []
    answer_all = Engine.answer_all

    def record(engine: Engine, prompts: Sequence[Any], config: GenerationConfig) -> object:
        found.append([len(prompt) for prompt in prompts])
        return answer_all(engine, prompts, config)

    monkeypatch.setattr(Engine, "answer_all", record)
    return found


def test_nothing_is_left_behind(model: vila_core.Vila) -> None:
    answer = model.generate("How are you?", max_new_tokens=8)
    model.engine.clear_cache()
    before = model.engine.stats()
    model.warm_up()
    assert model.engine.stats() == before
    assert isinstance(before, EngineStats)
    assert before.pages_kept == before.pages_used == before.cached_tokens == 0
    assert model.generate("How are you?", max_new_tokens=8) == answer


def test_all_sizes_come_up_to_the_limits(model: vila_core.Vila, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(model, monkeypatch)
    warm_up(model.engine, model.network.llm, model.tokenizer.encode("some words"), all_sizes=True)
    assert found[::2] == found[1::2], "greedy and sampled"
    assert found[::2] == [[16], [8, 8], [32], [16, 16], [64], [32, 32], [1], [1, 1], [1, 1, 1]]
    assert model.engine.stats().pages_used == model.engine.stats().pages_kept == 0


def test_sizes_without_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(max_batch=2, chunk_tokens=128, cache_bytes=1 << 17)
    model = vila_core.load("vila-tiny", device="cpu", engine=config)
    found = asked(model, monkeypatch)
    warm_up(model.engine, model.network.llm, model.tokenizer.encode("some words"), all_sizes=True)
    assert [128] in found
    assert model.engine.stats().pages * 64 < 128, "so that 128 tokens have no room"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_warm_engine_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DecoderConfig(
        architecture="llama", hidden_size=256, vocab_size=333, max_length=512, intermediate_size=512,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=512,
    )  # fmt: skip
    decoder = Decoder(config)
    decoder.reset_parameters(std=0.1, generator=torch.Generator().manual_seed(0))
    decoder = decoder.to("cuda", torch.bfloat16).requires_grad_(False)
    tokenizer: Tokenizer = vila_core.load("vila-tiny", device="cpu").tokenizer
    engine = Engine(decoder, tokenizer, frozenset(), EngineConfig(max_batch=8, chunk_tokens=256, cache_bytes=64 << 20))
    captured: list[object] = []

    def count(call: Any, *args: Any) -> Any:
        captured.append(call)
        return capture(call, *args)

    monkeypatch.setattr("vila_core.language.paged_graphs.capture", count)
    monkeypatch.setattr(paged_prefill, "capture", count)
    warm_up(engine, decoder, range(20, 300), all_sizes=True)
    assert captured
    captured.clear()
    for rows in range(1, 9):
        prompts = [TextPrompt(decoder, range(40 + row, 60 + row)) for row in range(rows)]
        for temperature in (0.0, 1.0):
            engine.answer_all(prompts, GenerationConfig(max_new_tokens=4, temperature=temperature, seed=0))
    assert not captured
